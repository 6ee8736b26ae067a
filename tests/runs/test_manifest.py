"""manifest.json: what it says can be trusted, or is rejected in one line."""

import json
import random

import pytest

from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.runs import manifest as manifests

LABELS = Labels((LabelSpace("s", ("x", "y"), binary=True), LabelSpace("t", ("z", "w"), key="k")))
FIELDS = {
    "step": 6,
    "config": {"seed": 1, "optim": {"lr": 1e-4, "betas": [0.0, 0.99]}, "recipe": "f"},
    "domains": ["x", "y", "z", "w"],
    "labels": LABELS.to_dict(),
    "data": "abc",
    "files": {"networks.safetensors": {"bytes": 12, "sha256": "0" * 64}},
    "skipped": {"train/0.tar": {"samples": 1, "reason": "it is truncated"}},
    "scales": {"D": [32768.0, 3.0]},
    "nonfinite": 2,
    "fence": 3,
}
VALID = manifests.to_json(FIELDS)


def parse(data, step=6):
    return manifests.from_json(data, "run/manifest.json", step, "remedy")


def changed(**changes):
    """Return a manifest of version 2, which has no hash, with some fields changed or removed."""
    fields = json.loads(VALID) | {"version": 2} | changes
    return json.dumps({k: v for k, v in fields.items() if k != "sha256" and v is not ...}).encode()


def test_every_field_is_restored():
    manifest = parse(VALID)
    assert manifest.labels == LABELS
    for name in FIELDS.keys() - {"labels", "files"}:
        assert getattr(manifest, name) == FIELDS[name]
    assert manifest.files["networks.safetensors"].bytes == 12


def test_a_manifest_of_the_former_version_is_read():
    manifest = parse(changed(labels=..., skipped=..., scales=..., nonfinite=..., fence=...))
    assert (manifest.step, manifest.skipped, manifest.nonfinite) == (6, {}, 0)
    assert manifest.labels == domain_labels(FIELDS["domains"])


def test_no_flipped_bit_is_accepted():
    rng = random.Random(0)
    for position in range(len(VALID)):
        flipped = VALID[position] ^ (1 << rng.randrange(8))
        with pytest.raises(UserError, match=r"^run/manifest\.json .*remedy$"):
            parse(VALID[:position] + bytes([flipped]) + VALID[position + 1 :])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"\xef\xbb\xbf" + VALID, VALID[:-40], VALID * 2,
        b'{"version": 3, "config": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
        VALID.replace(b'"step": 6', b'"step": ' + b"9" * 5000),
        changed(step=-3), changed(step="6"), changed(step=6.5), changed(step=True),
        changed(step=...), changed(config=None), changed(domains="xy"), changed(files=[]),
        changed(data=1),
        changed(files={"networks.safetensors": {"bytes": -1, "sha256": "0" * 64}}),
        changed(files={"networks.safetensors": {"bytes": 1, "sha256": "0"}}),
        changed(labels={"spaces": [{"name": "s"}]}), changed(skipped={"a": 1}),
        changed(scales={"D": "x"}), changed(nonfinite=None), changed(stepp=1), changed(version="2"),
        changed(version=3),
    ],
)  # fmt: skip
def test_an_invalid_manifest_is_rejected_in_one_line(data):
    with pytest.raises(UserError, match=r"^run/manifest\.json .*remedy$"):
        parse(data)


def test_a_manifest_in_the_folder_of_another_step_is_rejected():
    with pytest.raises(UserError, match="is of step 6, in the folder of 8"):
        parse(VALID, step=8)


def test_a_manifest_of_an_unknown_version_is_rejected():
    with pytest.raises(UserError, match=r"has format version 1, this program reads version 3"):
        parse(changed(version=1))
