"""What lets other configs build on ours: ``_base_ = 'convnext_backbone::detection/...'``.

mmengine gives each part of such a base the scope of its package, and imports the package's
``registry`` to find the part there. But the parts of our configs are those of mmdet, mmseg and
mmengine, so this scope stands for the default scope of the config.
"""

from __future__ import annotations

from mmengine.registry import DefaultScope, Registry, root

SCOPE = 'convnext_backbone'


class DefaultScopeRegistry(Registry):
    """A child of one of mmengine's registries that has nothing of its own."""

    def get(self, key: str) -> type | None:
        """Finds a name in the default scope, otherwise in mmengine's registry."""
        scopes = [instance.scope_name for instance in DefaultScope._instance_dict.values()]
        others = [scope for scope in scopes if scope != SCOPE]
        if not others:
            return self.parent.get(key)
        with self.parent.switch_scope_and_registry(others[-1]) as registry:
            return registry.get(key)


for _parent in [entry for entry in vars(root).values() if isinstance(entry, Registry)]:
    DefaultScopeRegistry(_parent.name, parent=_parent, scope=SCOPE)
