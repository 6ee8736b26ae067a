import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARK = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "loader.py"
WAYS, FIGURES = ("exact", "original", "reencoded"), ("ratio", "float_ratio", "psnr_db")
KEYS = {"baseline_img_s", *(f"{way}_{figure}" for way in WAYS for figure in FIGURES)}


def run(*args):
    return subprocess.run(
        [sys.executable, BENCHMARK, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_it_times_all_ways_and_ends_with_json():
    done = run("--count", 3, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row.keys() == KEYS
    assert row["original_psnr_db"] > row["reencoded_psnr_db"] > 35


@pytest.mark.slow
def test_it_takes_images_from_a_folder(tmp_path):
    for i in range(2):
        Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 20 + i).convert("RGB").save(
            tmp_path / f"{i}.jpg"
        )
    done = run("--count", 2, "--rounds", 1, "--images", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not 512 px: (300, 200)" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]).keys() == KEYS
