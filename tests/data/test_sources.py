"""Several data sets with labels of their own: slots, labels, targets, faults."""

import dataclasses
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist import config as configs
from stargan_dist import sample
from stargan_dist.config import DataConfig, SourceConfig
from stargan_dist.data import transforms
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.data.order import Order, place, seeded_rng, targets
from stargan_dist.data.reader import ShardReader, open_reader
from stargan_dist.data.sources import DataSources, load_labelled_images, open_sources
from stargan_dist.data.stream import Slots, describe_step
from stargan_dist.errors import UserError, WorldError
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.inference.grids import HEADER_PIXELS
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import CheckpointState
from stargan_dist.shards.build import build
from stargan_dist.training import trainer
from tests.conftest import SMOKE
from tests.data.test_stream import BATCH_SIZE, STEPS, assert_same, load, load_world
from tests.helpers.runs import assert_same_bits

SPECIES = ("cat", "dog", "rabbit")


def write_manifest(animals, path, attributes_of, domain_of=lambda i: "face"):
    rows = [
        {"path": str(image), "domain": domain_of(i), **attributes_of(i, image)}
        for i, image in enumerate(sorted(animals.glob("*/*")))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def hair(i):
    """As CelebA's list has it."""
    return {name: 1 if i % 3 == k else -1 for k, name in enumerate(("black", "blond", "brown"))}


@pytest.fixture(scope="module")
def urls(animals, tmp_path_factory):
    """Shards of faces, one domain with attributes, and of species named by an attribute."""
    folder = tmp_path_factory.mktemp("sets")
    write_manifest(animals, folder / "faces.jsonl", lambda i, _: hair(i) | {"male": i % 2 == 0})
    write_manifest(
        animals, folder / "kinds.jsonl", lambda _, image: {"kind": image.parent.name},
        domain_of=lambda i: f"part{i % 2}",
    )  # fmt: skip
    for name in ("faces", "kinds"):
        build(str(folder / f"{name}.jsonl"), str(folder / name), val_fraction=0.25, shard_images=5)
    # The images of kinds, packed in another way.
    build(str(folder / "kinds.jsonl"), str(folder / "others"), val_fraction=0.25, shard_images=4)
    return {name: str(folder / name) for name in ("faces", "kinds", "others")}


@pytest.fixture(scope="module")
def faces(urls):
    attributes = ["black", "blond", "brown", "male"]
    return SourceConfig(urls["faces"], attributes, [["black", "blond", "brown"]])


@pytest.fixture(scope="module")
def kinds(urls):
    return SourceConfig(urls["kinds"], category="kind", categories=list(SPECIES))


@pytest.fixture(scope="module")
def joint(faces, kinds):
    return open_sources(DataConfig(sources={"faces": faces, "kinds": kinds}), "train")


def make_slots(sets, references=False, permuted=True, **options):
    return Slots(sets, 3, 32, 5, BATCH_SIZE, references=references, permuted=permuted, **options)


# A single set, as it was before there were several.


def test_slots_of_a_single_set_are_written_out(shards):
    reader = open_reader(DataConfig(shards), "train")
    order = Order(reader.index.counts("train"), seed=3)
    slots = Slots(DataSources([reader], domain_labels(reader.index.domains)), 3, 32, 5, BATCH_SIZE)
    for slot in (0, 5, 77):
        batch = slots[slot].batch
        source, (ref, ref2) = order.source(slot), order.references(slot)
        roles = (
            ("x", "source", source),
            ("x_ref", "reference", ref),
            ("x_ref2", "reference2", ref2),
        )
        for field, role, location in roles:
            rng = seeded_rng(3, "augment", role, slot)
            image = transforms.load_augmented(reader.read(location).image, 32, rng, fast=False)
            assert np.array_equal(getattr(batch, field).numpy(), image)
        assert (batch.y.item(), batch.y_trg.item()) == (source.domain, ref.domain)
        z = seeded_rng(3, "latent", slot).standard_normal((2, 5)).astype(np.float32)
        assert torch.equal(torch.stack([batch.z, batch.z2]), torch.from_numpy(z))


def test_without_references_all_else_stays_and_no_other_image_is_read(shards, monkeypatch):
    sets = open_sources(DataConfig(shards), "train")
    whole = load(make_slots(sets, references=True, permuted=False), range(2))
    reads = []
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, at: reads.append(at) or read(self, at))
    for batch, other in zip(load(make_slots(sets, permuted=False), range(2)), whole, strict=True):
        assert batch.x_ref is None and batch.x_ref2 is None
        assert_same([batch], [other._replace(x_ref=None, x_ref2=None)])
    assert len(reads) == 2 * BATCH_SIZE
    for batch in load(make_slots(sets), range(2)):  # permuted domains need no reads either
        assert batch.y_trg.dtype == torch.int64
    assert len(reads) == 4 * BATCH_SIZE


def test_a_source_of_domains_is_the_same_as_shards(shards):
    config = DataConfig(sources={"animals": SourceConfig(shards)})
    named, plain = open_sources(config, "train"), open_sources(DataConfig(shards), "train")
    assert config.by_domain and named.labels.by_domain and named.domains == plain.domains
    assert plain.fingerprint == plain.readers[0].index.fingerprint != named.fingerprint
    assert_same(
        load(make_slots(named, True, False), range(2)),
        load(make_slots(plain, True, False), range(2)),
    )


# Several.


def test_steps_take_one_set_after_the_other_and_each_sees_its_slots_without_a_gap():
    for sets in (1, 2, 3):
        seen = {number: [] for number in range(sets)}
        for step in range(6 * sets):
            places = [place(step * 4 + i, 4, sets) for i in range(4)]
            assert {number for number, _ in places} == {step % sets}
            seen[step % sets] += [own for _, own in places]
        assert all(own == list(range(24)) for own in seen.values())


def test_each_set_has_a_pass_and_an_order_of_its_own(faces):
    sets = open_sources(DataConfig(sources={"one": faces, "other": faces}), "train")
    slots, size = make_slots(sets), sets.images // 2
    assert size == 27
    visited = {0: [], 1: []}
    for slot in range(60):
        visited[slots.place(slot)[0].number].append(slots.source(slot))
    assert all(len(set(locations[:size])) == size for locations in visited.values())
    assert visited[0][:size] != visited[1][:size]


@pytest.fixture(scope="module")
def sequence(joint):
    return load(make_slots(joint))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (4, 1)])
def test_any_world_reads_the_one_sequence_before_and_after_a_resume(
    joint, sequence, ranks, workers
):
    slots = make_slots(joint)
    assert_same_labels(load_world(slots, range(3), ranks, workers=workers), sequence[:3])
    assert_same_labels(load_world(slots, range(3, STEPS), 2), sequence[3:])


def assert_same_labels(batches, others):
    assert_same(batches, others)
    assert all(batch.x_ref is None for batch in batches)


def test_labels_are_of_the_set_of_the_step(joint, sequence):
    for step, batch in enumerate(sequence):
        assert batch.y.shape == batch.y_trg.shape == (BATCH_SIZE, 4 + 3 + 2)
        assert batch.y.dtype == batch.y_trg.dtype == torch.float32
        assert batch.y[:, 7:].tolist() == [[1, 0] if step % 2 == 0 else [0, 1]] * BATCH_SIZE
        known, unknown = (slice(0, 4), slice(4, 7))[:: 1 if step % 2 == 0 else -1]
        assert (batch.y[:, unknown] == 0).all()
        assert (batch.y[:, :3].sum(1) == 1).all() or step % 2
        assert (batch.y[:, 4:7].sum(1) == 1).all() or not step % 2
        assert set(batch.y[:, known].flatten().tolist()) <= {0, 1}


def test_labels_are_what_the_samples_say(joint, sequence):
    slots = make_slots(joint)
    for step in (0, 1):
        for i in range(BATCH_SIZE):
            slot = step * BATCH_SIZE + i
            facts = joint.readers[step].read(slots.source(slot)).facts["attributes"]
            y = sequence[step].y[i].tolist()
            if step == 0:
                hairs = [float(facts[name] == 1) for name in ("black", "blond", "brown")]
                assert y[:4] == [*hairs, float(facts["male"])]
            else:
                assert y[4:7] == [float(facts["kind"] == kind) for kind in SPECIES]


def test_targets_are_a_permutation_of_the_labels_of_the_global_batch(sequence):
    for step, batch in enumerate(sequence):
        order = targets(3, step, BATCH_SIZE)
        assert sorted(order) == list(range(BATCH_SIZE))
        assert torch.equal(batch.y_trg, batch.y[list(order)])
    assert len({targets(3, step, BATCH_SIZE) for step in range(50)}) > 10


def test_mixtures_are_uniform_and_of_their_slot(joint):
    mix = torch.cat([slots.mix[None] for slots in (make_slots(joint)[i].batch for i in range(64))])
    assert mix.dtype == torch.float32 and mix.min() >= 0 and mix.max() < 1
    assert len(set(mix.tolist())) == 64 and 0.35 < mix.mean() < 0.65


def test_a_batch_without_references_is_moved_and_split(sequence):
    moved = sequence[0].to(torch.device("cpu"), torch.float64)
    assert moved.x_ref is None and moved.y.dtype == moved.mix.dtype == torch.float64
    halves = moved.split(2)
    assert [half.x.shape[0] for half in halves] == [2, 2] and halves[1].x_ref2 is None
    assert torch.equal(halves[1].y, moved.y[2:])


def test_what_a_batch_was_made_of_can_be_told(joint):
    rows = describe_step(make_slots(joint), 1)
    assert [set(row) for row in rows] == [{"slot", "x"}] * BATCH_SIZE
    assert [row["slot"] for row in rows] == [4, 5, 6, 7]
    assert all("part" in row["x"] for row in rows)  # step 1 is of the second set


def test_images_of_grids_have_labels(joint, faces, kinds, shards):
    some = load_labelled_images(joint, 32, first=1, per_domain=2)
    assert some.images.shape == (2 + 2 * 2, 3, 32, 32)
    assert some.labels[:, 7:].tolist() == [[1, 0]] * 2 + [[0, 1]] * 4
    assert some.domains == ["black", "blond", "brown", "male", *SPECIES]
    plain = load_labelled_images(
        open_sources(DataConfig(shards), "val"), 32, per_domain=1, domains=2
    )
    assert plain.labels.tolist() == [0, 1] and plain.domains == ["cat", "dog"]


def test_the_fingerprint_is_of_all_sets_and_their_order(joint, faces, kinds):
    other = open_sources(DataConfig(sources={"kinds": kinds, "faces": faces}), "train")
    assert joint.fingerprint != other.fingerprint
    assert joint.images == 27 + 2 * 14


# Faults.


def test_a_source_needs_no_second_domain_but_something_to_translate_to(urls, joint):
    joint.check(references=False)
    config = DataConfig(sources={"faces": SourceConfig(urls["faces"])})
    with pytest.raises(UserError, match="has one domain"):
        open_sources(config, "train").check(references=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"binary": ["male", "old"], "exclusive": []}, "no attribute old"),
        ({"binary": [], "exclusive": [], "category": "black", "categories": ["7", "8"]},
         "attribute black is '-?1', not one of 7, 8"),
    ],
)  # fmt: skip
def test_a_missing_attribute_is_told_with_its_sample(faces, change, said):
    sets = open_sources(DataConfig(sources={"faces": replace(faces, **change)}), "train")
    with pytest.raises(UserError, match=f"sample train/0.* of shard train/.*: .*{said}"):
        sets.check_labels()
    with pytest.raises(UserError, match=f"{said}.*--data.on_bad_shard skip"):
        load(make_slots(sets), range(1))


@pytest.fixture(scope="module")
def partly(animals, tmp_path_factory):
    """A set of which one image in four has an attribute that is neither true nor false."""
    folder = tmp_path_factory.mktemp("partly")
    write_manifest(animals, folder / "m.jsonl", lambda i, _: {"male": 7 if i % 4 == 0 else i % 2})
    build(str(folder / "m.jsonl"), str(folder / "set"), val_fraction=0, shard_images=5)
    return DataConfig(sources={"faces": SourceConfig(str(folder / "set"), ["male"])})


def test_samples_without_a_label_can_be_skipped(partly):
    """What stands in for one gives its own label, also where the label is another one's target."""
    sets, faults = open_sources(partly, "train"), 0
    slots = make_slots(sets, skip=True)
    for step in range(3):
        loaded = [slots[step * BATCH_SIZE + i] for i in range(BATCH_SIZE)]
        y = torch.stack([slot.batch.y for slot in loaded])
        y_trg = torch.stack([slot.batch.y_trg for slot in loaded])
        assert torch.equal(y_trg, y[list(targets(3, step, BATCH_SIZE))])
        faults += sum(len(slot.faults) for slot in loaded)
        assert all("attribute male is 7" in f.reason for slot in loaded for f in slot.faults)
    assert faults > 0


def test_sets_share_the_cache(faces, kinds, tmp_path):
    config = DataConfig(sources={"a": faces, "b": kinds}, cache=str(tmp_path), cache_gib=1e-6)
    with pytest.raises(UserError, match=r"data\.cache_gib: .* cannot hold"):
        open_sources(config, "train")
    sets = open_sources(replace(config, cache_gib=1.0), "train")
    assert {reader.cache for reader in sets.readers} == {sets.readers[0].cache} != {None}


def test_labels_as_the_configuration_says(joint):
    assert joint.labels == Labels(
        (
            LabelSpace(
                "faces", ("black", "blond", "brown", "male"), True, (("black", "blond", "brown"),)
            ),
            LabelSpace("kinds", SPECIES, key="kind"),
        )
    )


# What a run looks at before it begins.


def sources_of(**sources):
    return json.dumps({name: dataclasses.asdict(source) for name, source in sources.items()})


def config_of(run, sources, *arguments):
    named = ["--run", str(run), "--data.shards", "", "--data.sources", sources]
    named += ["--recipe", "stargan"]
    return configs.parse(["--config", str(SMOKE), *named, *arguments])


def plan_of(*arguments):
    return trainer.plan(config_of(*arguments))


def test_a_plan_has_all_sets(tmp_path, faces, kinds, joint):
    plan = plan_of(tmp_path / "run", sources_of(faces=faces, kinds=kinds))
    assert (plan.sets.labels, plan.sets.fingerprint) == (joint.labels, joint.fingerprint)
    assert (plan.start, plan.resume) == (0, None)


def test_a_plan_refuses_labels_that_cannot_be_read_unless_they_are_skipped(tmp_path, faces):
    sources = sources_of(faces=replace(faces, binary=["old"], exclusive=[]))
    with pytest.raises(UserError, match="no attribute old"):
        plan_of(tmp_path / "run", sources)
    assert plan_of(tmp_path / "run", sources, "--data.on_bad_shard", "skip").start == 0


@pytest.mark.parametrize("recipe", ["b", "c", "d", "e", "f"])
def test_a_plan_refuses_labels_that_the_recipe_has_no_use_for(tmp_path, faces, recipe):
    with pytest.raises(UserError, match=f"recipe: {recipe} .* or take one of stargan, a, c_acgan"):
        plan_of(tmp_path / "run", sources_of(faces=faces), "--recipe", recipe)


def test_a_run_is_resumed_on_the_same_sets_alone(tmp_path, faces, kinds, urls):
    run = str(tmp_path / "run")
    sets = plan_of(run, sources_of(faces=faces, kinds=kinds)).sets
    config = config_of(run, sources_of(faces=faces, kinds=kinds))
    facts = {"config": configs.to_dict(config), "domains": sets.domains}
    facts |= {"data": sets.fingerprint, "labels": sets.labels.to_dict()}
    checkpoints.save(run, 3, CheckpointState({"G.w": torch.zeros(1)}, {}, {}, {}), facts)
    assert checkpoints.find(run).labels == sets.labels
    shutil.copytree(urls["faces"], tmp_path / "copy")
    moved = replace(faces, shards=str(tmp_path / "copy"))
    assert plan_of(run, sources_of(faces=moved, kinds=kinds)).start == 3
    others = replace(kinds, shards=urls["others"])
    for order in ({"kinds": kinds, "faces": faces}, {"faces": faces, "kinds": others}):
        with pytest.raises(UserError, match="was trained on other shards than"):
            plan_of(run, sources_of(**order))


def test_evaluation_needs_domains(faces):
    config = configs.parse(["--run", "r", "--data.sources", sources_of(faces=faces)])
    with pytest.raises(WorldError, match=r"this run has other labels .* look at its grids"):
        Evaluator(config, None)


# A run, from the first step to translations of own images.


@pytest.fixture(scope="module")
def finished(faces, kinds, tmp_path_factory):
    """A run on both sets, in which G has stepped once on each."""
    run = tmp_path_factory.mktemp("run") / "joint"
    assert trainer.train(joint_run(run, faces, kinds, steps=11)) == trainer.FINISHED
    return run


def joint_run(run, faces, kinds, steps, **options):
    options = {"recipe": "stargan", "steps": steps, "monitor.sample_every": 11} | options
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return config_of(run, sources_of(faces=faces, kinds=kinds), *given)


@pytest.mark.parametrize("stop", [3, 9])
def test_a_resumed_run_on_two_sets_equals_an_unbroken_one(tmp_path, faces, kinds, finished, stop):
    """Also where it stops between the steps of G on the one set and on the other."""
    trainer.train(joint_run(tmp_path / "run", faces, kinds, steps=stop))
    resumed = joint_run(tmp_path / "run", faces, kinds, steps=11, **{"data.workers": 1})
    assert trainer.train(resumed) == trainer.FINISHED
    assert_same_bits(tmp_path / "run", finished)


def test_a_run_on_two_sets_leaves_a_grid_and_what_its_labels_are(finished, joint):
    found = checkpoints.find(str(finished))
    assert (found.labels, found.domains) == (joint.labels, joint.domains)
    names = {path.name for path in (finished / "samples").iterdir()}
    assert names == {"latent_00000000.png", "latent_00000011.png"}  # none of references


def test_samples_of_own_images_of_one_of_two_sets(finished, animals, tmp_path, monkeypatch):
    files = [str(path) for path in sorted(animals.glob("cat/*"))[:2]]
    options = [
        "--data-source",
        "faces",
        "--attributes",
        "male=1",
        "--targets",
        "male",
        "dog",
        "--latents=3",
    ]
    given = [
        "sample",
        "--run",
        str(finished),
        "--out",
        str(tmp_path),
        "--sources",
        *files,
        *options,
    ]
    monkeypatch.setattr("sys.argv", given)
    sample.main()
    with Image.open(tmp_path / "latent_step_00000011.png") as picture:
        # Without a latent there is one translation to each target.
        assert picture.size == (3 * 66 + 2, 2 * 66 + 2 + HEADER_PIXELS)
