"""benchmarks/loader.py runs with its smallest options and prints its figures as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARK = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "loader.py"
LOADERS, FIGURES = ("exact", "original", "reencoded"), ("ratio", "float_ratio", "psnr_db")
KEYS = {"baseline_img_s", *(f"{loader}_{figure}" for loader in LOADERS for figure in FIGURES)}


def run(*args):
    return subprocess.run(
        [sys.executable, BENCHMARK, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_it_times_all_loaders_and_ends_with_json():
    process = run("--count", 3, "--rounds", 1)
    assert process.returncode == 0, process.stderr
    row = json.loads(process.stdout.splitlines()[-1])
    assert row.keys() == KEYS
    assert row["original_psnr_db"] > row["reencoded_psnr_db"] > 35


@pytest.mark.slow
def test_it_reads_images_from_a_folder(tmp_path):
    for i in range(2):
        Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 20 + i).convert("RGB").save(
            tmp_path / f"{i}.jpg"
        )
    process = run("--count", 2, "--rounds", 1, "--images", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "not 512 px: (300, 200)" in process.stdout
    assert json.loads(process.stdout.splitlines()[-1]).keys() == KEYS
