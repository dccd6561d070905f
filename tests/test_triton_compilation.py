"""The Triton kernels compile for every architecture without a card, and spill no registers.

Compiling all of them takes long. So what they need is in kernel_resources.json, together with a
hash of their source, and a change of a kernel needs a new record.
"""

import json
import os
import random
import subprocess
import sys

import pytest
from helpers import REPO

pytest.importorskip('triton', minversion='3.7')

import triton
from kernel_plans import TYPES, block_plans

from convnext_backbone.ops.native import TRITON_WIDTHS

FOLDER = REPO / 'tools/analysis_tools'


def run_compiled(*command):
    """Runs Python with kernels that are compiled, not interpreted."""
    environment = {name: v for name, v in os.environ.items() if name != 'TRITON_INTERPRET'}
    paths = [str(REPO), str(FOLDER), environment.get('PYTHONPATH', '')]
    environment['PYTHONPATH'] = os.pathsep.join(paths)
    result = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.skipif(
    triton.__version__ != '3.7.1', reason='kernel_resources.json is for Triton 3.7.1'
)
def test_every_kernel_fits_every_card():
    code, output = run_compiled(FOLDER / 'ahead_of_time.py')
    assert code == 0, output
    records = json.loads((REPO / 'tests/kernel_resources.json').read_text())
    for needs in records.values():
        assert needs.keys() == {'source', '80', '86', '89', '90', '100'}
        assert all(needs[arch][1] == 0 for arch in needs if arch != 'source')


def test_a_spill_is_a_fault():
    """The same kernel in 32 registers a thread."""
    code, output = run_compiled(
        '-c',
        """
import torch
from ahead_of_time import *
from convnext_backbone.ops.triton_kernels import plan_gelu_backward_

maps = torch.empty(64, 384, device='meta')
launch = plan_gelu_backward_(maps, maps, None, None)[1][0]
assert not misfits('it', 90, compile_for(launch, 90))
print(misfits('it', 90, compile_for(launch, 90, maxnreg=32)))
print(misfits('it', 90, Resources(32, 0, 300_000)))
print(find_faults({title(launch): launch}, {}))
""",
    )
    assert code == 0, output
    spill, shared, missing = output.splitlines()
    assert 'it on sm_90 spills' in spill
    assert 'it on sm_90 needs 300000 bytes of shared memory' in shared
    assert 'is not in kernel_resources.json, or has changed: run python' in missing


def random_shapes():
    generator = random.Random(0)
    return [tuple(generator.randint(1, high) for high in (64, 400, 400)) for _ in range(50)]


def test_new_image_sizes_compile_nothing():
    """What Triton compiles by is the same for 50 random shapes, in a width of every class."""
    code, output = run_compiled(
        '-c',
        f"""
from ahead_of_time import *

def launches(*arguments):
    return [launch for plan in block_plans(*arguments) for launch in plan.launches]

classes = {{tuple(map(title, launches(c, TYPES[0]))): c for c in TRITON_WIDTHS}}
for i, channels in enumerate(classes.values()):
    types = TYPES[i % len(TYPES)]
    keys = {{
        tuple(map(compile_key, launches(channels, types, shape))) for shape in {random_shapes()}
    }}
    print(channels, len(keys))
narrow, wide = (set(map(compile_key, launches(c, types))) for c in (40, 3072))
print(len(narrow & wide) < len(narrow))
""",
    )
    assert code == 0, output
    *counts, widths_differ = output.splitlines()
    assert len(counts) > 50
    assert all(line.split()[1] == '1' for line in counts), output
    assert widths_differ == 'True'


def test_constants_depend_on_the_width_only():
    for channels in TRITON_WIDTHS[::37]:
        for types in TYPES:
            constants = {
                repr(
                    [
                        (launch.constants, launch.options())
                        for plan in block_plans(channels, types, shape)
                        for launch in plan.launches
                    ]
                )
                for shape in ((1, 1, 1), (2, 7, 9), (3, 200, 304))
            }
            assert len(constants) == 1
