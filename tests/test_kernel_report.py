"""The report on the Triton kernels: every operator and width, and no traffic below the least."""

import json
import subprocess
import sys

import pytest
from helpers import REPO, run_tool

pytest.importorskip('triton', minversion='3.7')

from kernel_times import read_times

from convnext_backbone.ops import triton_kernels

OPERATORS = {name.removeprefix('plan_') for name in dir(triton_kernels) if name.startswith('plan_')}


def test_report_has_every_operator_and_the_whole_step(tmp_path):
    measured = tmp_path / 'measured.json'
    measured.write_text(json.dumps({'card': 'A100', 'kernels': {'norm': {'96': 0.125}}}))
    output = run_tool('kernel_report.py', '--card', 'a100', '--measured', measured, cwd=REPO)
    lines = [line.split() for line in output.splitlines()]
    kernels = {
        (n, int(w)): rest
        for n, w, *rest in (line for line in lines if len(line) == 11 and line[1].isdigit())
    }
    del lines[: output.splitlines().index('')]
    assert kernels.keys() == {(n, w) for n in OPERATORS for w in (96, 192, 384, 768)}
    for launches, registers, spills, _, moved, least, operations, time, _ in kernels.values():
        assert int(launches) in (1, 2) and 16 <= int(registers) <= 255 and int(spills) == 0
        assert float(moved) >= float(least) > 0
        assert float(operations) >= 0 and float(time) >= 0
        # An A100 moves 2.039 TB/s, at most.
        assert float(time) >= float(moved) / 2039 - 0.001
    assert kernels['norm', 96][-1] == '0.125' and kernels['norm', 192][-1] == '-'
    # A map of 2x200x304x96 in bfloat16 is read and written once.
    assert float(kernels['norm', 96][4]) == pytest.approx(
        2 * 2 * 2 * 200 * 304 * 96 / 1e6, rel=0.01
    )
    step = {' '.join(line[:-5]): line[-5:] for line in lines if len(line) > 5}
    assert int(step['block of 96 channels, forward'][1]) == 2
    assert int(step['block of 96 channels, backward'][1]) == 11
    # Products: 18 blocks and 4 convolutions, forward and twice as much backward.
    assert float(step['products of the step'][3]) == pytest.approx(1.012, rel=0.01)


def test_a_missing_file_of_times_is_told(tmp_path):
    command = [sys.executable, REPO / 'tools/kernel_report.py', '--measured', 'missing.json']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr == 'kernel_report.py: error: missing.json: No such file or directory\n'


@pytest.mark.parametrize(
    'content',
    [
        *(b'', b'{"kernels"', b'\xff', b'[]', b'3', b'{}', b'{"kernels": null}'),
        *(b'{"kernels": {}}', b'{"kernels": {"norm": 3}}', b'{"kernels": {"norm": {"96": "3"}}}'),
    ],
)
def test_other_files_have_no_times(content, tmp_path):
    path = tmp_path / 'other.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'other\.json has no times of kernels: give a'):
        read_times(path)
