"""The backbone in frameworks other than OpenMMLab's: one module each, imported where it is used."""
