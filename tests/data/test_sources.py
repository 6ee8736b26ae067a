"""Several data sources with labels of their own: slots, labels, targets, faults."""

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
from stargan_dist.data.order import Order, data_source_of_slot, seeded_rng, target_permutation
from stargan_dist.data.reader import ShardReader, open_reader
from stargan_dist.data.sources import DataSources, load_labelled_images, open_sources
from stargan_dist.data.stream import Slots, describe_step
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.inference.grids import HEADER_PIXELS
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import CheckpointState
from stargan_dist.shards.build import build
from stargan_dist.training import preparation, trainer
from tests.conftest import SMOKE
from tests.data.test_stream import BATCH_SIZE, STEPS, assert_same, load, load_world
from tests.helpers.runs import assert_same_bits

SPECIES = ("cat", "dog", "rabbit")


def write_manifest(animals, path, attributes_of, domain_of=lambda i: "face"):
    """Write a manifest of the animals with attributes and domains computed from their number."""
    entries = [
        {"path": str(image), "domain": domain_of(i), **attributes_of(i, image)}
        for i, image in enumerate(sorted(animals.glob("*/*")))
    ]
    path.write_text("\n".join(map(json.dumps, entries)))


def hair(i):
    """Return attributes in the format of CelebA's list: 1 and -1."""
    return {name: 1 if i % 3 == k else -1 for k, name in enumerate(("black", "blond", "brown"))}


@pytest.fixture(scope="module")
def urls(animals, tmp_path_factory):
    """Shards of faces (one domain, with attributes) and of kinds (an attribute is the species)."""
    folder = tmp_path_factory.mktemp("sources")
    write_manifest(animals, folder / "faces.jsonl", lambda i, _: hair(i) | {"male": i % 2 == 0})
    write_manifest(
        animals, folder / "kinds.jsonl", lambda _, image: {"kind": image.parent.name},
        domain_of=lambda i: f"part{i % 2}",
    )  # fmt: skip
    for name in ("faces", "kinds"):
        build(str(folder / f"{name}.jsonl"), str(folder / name), val_fraction=0.25, shard_images=5)
    # The images of kinds, divided into other shards.
    build(
        str(folder / "kinds.jsonl"),
        str(folder / "kinds_repacked"),
        val_fraction=0.25,
        shard_images=4,
    )
    return {name: str(folder / name) for name in ("faces", "kinds", "kinds_repacked")}


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


def make_slots(sources, reference_turns=(False,), targets="permuted", **options):
    options |= {"reference_turns": reference_turns, "targets": targets}
    return Slots(sources, 3, 32, 5, BATCH_SIZE, **options)


# A single source.


def test_slots_of_a_single_source_equal_a_literal_implementation(shards):
    reader = open_reader(DataConfig(shards), "train")
    order = Order(reader.index.counts("train"), seed=3)
    sources = DataSources([reader], domain_labels(reader.index.domains))
    slots = Slots(sources, 3, 32, 5, BATCH_SIZE)
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
            data = reader.read(location).image
            image = transforms.load_augmented(data, 32, rng, fast_decoding=False)
            assert np.array_equal(getattr(batch, field).numpy(), image)
        assert (batch.y.item(), batch.y_trg.item()) == (source.domain, ref.domain)
        z = seeded_rng(3, "latent", slot).standard_normal((2, 5)).astype(np.float32)
        assert torch.equal(torch.stack([batch.z, batch.z2]), torch.from_numpy(z))


def test_the_other_domain_is_the_target_of_each_source_of_a_pair(shards):
    """Each process and micro-batch has an image of each domain, in either order."""
    sources = open_sources(DataConfig(shards, pair=["dog", "cat"]), "train")
    slots = make_slots(sources, targets="other")
    whole = load(slots, range(4))
    parts = [load(slots, range(4), rank=rank, world_size=2) for rank in (0, 1)]
    orders = set()
    for step, batch in enumerate(whole):
        assert torch.equal(batch.y_trg, 1 - batch.y)
        assert torch.equal(torch.cat([part[step].y for part in parts]), batch.y)
        orders |= {tuple(part[step].y.tolist()) for part in parts}
    assert orders == {(0, 1), (1, 0)}


def test_a_pair_of_domains_is_a_dataset_of_its_own(shards):
    config = DataConfig(shards, pair=["dog", "cat"])
    whole, pair = (open_sources(c, "train") for c in (DataConfig(shards), config))
    assert pair.labels == domain_labels(["dog", "cat"])
    assert pair.num_images == sum(sum(whole.readers[0].index.counts("train")[i]) for i in (0, 1))
    reader = pair.readers[0]
    for label, name in enumerate(pair.domains):
        location = reader.locate(label, 0)
        assert reader.read(location).metadata.domain == name
        assert pair.label(0, location) == label
    others = [DataConfig(shards, pair=["cat", "dog"]), DataConfig(shards, pair=["dog", "rabbit"])]
    fingerprints = {open_sources(c, "train").fingerprint for c in (config, *others)}
    assert len(fingerprints | {whole.fingerprint}) == 4
    assert load_labelled_images(pair, 8, per_domain=1).domains == ["dog", "cat"]
    message = r"data.pair: .*: there is no domain cow; the domains are cat, dog, rabbit"
    with pytest.raises(UserError, match=message):
        open_sources(DataConfig(shards, pair=["dog", "cow"]), "val")


def test_without_references_other_fields_are_equal_and_only_sources_are_read(shards, monkeypatch):
    sources = open_sources(DataConfig(shards), "train")
    complete = load(make_slots(sources, reference_turns=(True,), targets="drawn"), range(2))
    reads = []
    read = ShardReader.read
    monkeypatch.setattr(
        ShardReader, "read", lambda self, location: reads.append(location) or read(self, location)
    )
    without_references = load(make_slots(sources, targets="drawn"), range(2))
    for batch, expected in zip(without_references, complete, strict=True):
        assert batch.x_ref is None and batch.x_ref2 is None
        assert_same([batch], [expected._replace(x_ref=None, x_ref2=None)])
    assert len(reads) == 2 * BATCH_SIZE
    for batch in load(make_slots(sources), range(2)):  # permuted domains need no reads either
        assert batch.y_trg.dtype == torch.int64
    assert len(reads) == 4 * BATCH_SIZE


def test_steps_load_references_in_turn_and_what_they_load_is_what_is_listed(shards, monkeypatch):
    sources = open_sources(DataConfig(shards), "train")
    complete = load(make_slots(sources, (True,), "drawn"), range(4))
    slots, reads, read = make_slots(sources, (False, True), "drawn"), [], ShardReader.read
    monkeypatch.setattr(
        ShardReader, "read", lambda self, location: reads.append(location) or read(self, location)
    )
    batches = load(slots, range(4))
    assert reads == [location for _, location in slots.samples(range(4 * BATCH_SIZE))]
    assert len(reads) == 2 * BATCH_SIZE * (1 + 3)
    for step, (batch, expected) in enumerate(zip(batches, complete, strict=True)):
        left_out = {} if step in (1, 2) else {"x_ref": None, "x_ref2": None}
        assert_same([batch], [expected._replace(**left_out)])
        described = {"slot", "x", "x_ref", "x_ref2"} - {*left_out}
        assert {*describe_step(slots, step)[0]} == described


def test_a_named_source_of_domains_equals_plain_shards(shards):
    config = DataConfig(sources={"animals": SourceConfig(shards)})
    named, plain = open_sources(config, "train"), open_sources(DataConfig(shards), "train")
    assert config.by_domain and named.labels.by_domain and named.domains == plain.domains
    assert plain.fingerprint == plain.readers[0].index.fingerprint != named.fingerprint
    assert_same(
        load(make_slots(named, (True,), "drawn"), range(2)),
        load(make_slots(plain, (True,), "drawn"), range(2)),
    )


# Several sources.


def test_steps_alternate_between_sources_and_each_sees_its_slots_without_a_gap():
    for num_sources in (1, 2, 3):
        slots_of_source = {source_index: [] for source_index in range(num_sources)}
        for step in range(6 * num_sources):
            slots = [data_source_of_slot(step * 4 + i, 4, num_sources) for i in range(4)]
            assert {source_index for source_index, _ in slots} == {step % num_sources}
            slots_of_source[step % num_sources] += [source_slot for _, source_slot in slots]
        assert all(slots == list(range(24)) for slots in slots_of_source.values())


def test_each_source_has_a_pass_and_an_order_of_its_own(faces):
    sources = open_sources(DataConfig(sources={"one": faces, "other": faces}), "train")
    slots, size = make_slots(sources), sources.num_images // 2
    assert size == 27
    visited = {0: [], 1: []}
    for slot in range(60):
        visited[slots.images_of_slot(slot)[0].source_index].append(slots.source(slot))
    assert all(len(set(locations[:size])) == size for locations in visited.values())
    assert visited[0][:size] != visited[1][:size]


@pytest.fixture(scope="module")
def sequence(joint):
    return load(make_slots(joint))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (4, 1)])
def test_any_world_reads_the_same_sequence_before_and_after_a_resume(
    joint, sequence, ranks, workers
):
    slots = make_slots(joint)
    assert_same_without_references(
        load_world(slots, range(3), ranks, workers=workers), sequence[:3]
    )
    assert_same_without_references(load_world(slots, range(3, STEPS), 2), sequence[3:])


def assert_same_without_references(batches, expected_batches):
    assert_same(batches, expected_batches)
    assert all(batch.x_ref is None for batch in batches)


def test_labels_belong_to_the_source_of_the_step(joint, sequence):
    for step, batch in enumerate(sequence):
        assert batch.y.shape == batch.y_trg.shape == (BATCH_SIZE, 4 + 3 + 2)
        assert batch.y.dtype == batch.y_trg.dtype == torch.float32
        assert batch.y[:, 7:].tolist() == [[1, 0] if step % 2 == 0 else [0, 1]] * BATCH_SIZE
        known, unknown = (slice(0, 4), slice(4, 7))[:: 1 if step % 2 == 0 else -1]
        assert (batch.y[:, unknown] == 0).all()
        assert (batch.y[:, :3].sum(1) == 1).all() or step % 2
        assert (batch.y[:, 4:7].sum(1) == 1).all() or not step % 2
        assert set(batch.y[:, known].flatten().tolist()) <= {0, 1}


def test_labels_equal_the_metadata_of_the_samples(joint, sequence):
    slots = make_slots(joint)
    for step in (0, 1):
        for i in range(BATCH_SIZE):
            slot = step * BATCH_SIZE + i
            attributes = joint.readers[step].read(slots.source(slot)).metadata.attributes
            y = sequence[step].y[i].tolist()
            if step == 0:
                hairs = [float(attributes[name] == 1) for name in ("black", "blond", "brown")]
                assert y[:4] == [*hairs, float(attributes["male"])]
            else:
                assert y[4:7] == [float(attributes["kind"] == kind) for kind in SPECIES]


def test_targets_are_permuted_labels_of_the_global_batch(sequence):
    for step, batch in enumerate(sequence):
        permutation = target_permutation(3, step, BATCH_SIZE)
        assert sorted(permutation) == list(range(BATCH_SIZE))
        assert torch.equal(batch.y_trg, batch.y[list(permutation)])
    assert len({target_permutation(3, step, BATCH_SIZE) for step in range(50)}) > 10


def test_interpolation_weights_are_uniform_and_differ_between_slots(joint):
    slots = make_slots(joint)
    mix = torch.stack([slots[i].batch.mix for i in range(64)])
    assert mix.dtype == torch.float32 and mix.min() >= 0 and mix.max() < 1
    assert len(set(mix.tolist())) == 64 and 0.35 < mix.mean() < 0.65


def test_a_batch_without_references_can_be_moved_and_split(sequence):
    moved = sequence[0].to(torch.device("cpu"), torch.float64)
    assert moved.x_ref is None and moved.y.dtype == moved.mix.dtype == torch.float64
    halves = moved.split(2)
    assert [half.x.shape[0] for half in halves] == [2, 2] and halves[1].x_ref2 is None
    assert torch.equal(halves[1].y, moved.y[2:])


def test_a_step_is_described_by_the_keys_of_its_images(joint):
    descriptions = describe_step(make_slots(joint), 1)
    assert [set(description) for description in descriptions] == [{"slot", "x"}] * BATCH_SIZE
    assert [description["slot"] for description in descriptions] == [4, 5, 6, 7]
    assert all("part" in description["x"] for description in descriptions)  # the second source


def test_loaded_images_have_labels_of_their_source(joint, faces, kinds, shards):
    loaded = load_labelled_images(joint, 32, first=1, per_domain=2)
    assert loaded.images.shape == (2 + 2 * 2, 3, 32, 32)
    assert loaded.labels[:, 7:].tolist() == [[1, 0]] * 2 + [[0, 1]] * 4
    assert loaded.domains == ["black", "blond", "brown", "male", *SPECIES]
    plain = load_labelled_images(
        open_sources(DataConfig(shards), "val"), 32, per_domain=1, domains=2
    )
    assert plain.labels.tolist() == [0, 1] and plain.domains == ["cat", "dog"]


def test_labels_of_a_far_source_are_read_many_at_a_time(faces, http):
    shutil.copytree(faces.shards, http.folder, dirs_exist_ok=True)
    near, far = (
        open_sources(DataConfig(sources={"faces": source}), "train")
        for source in (faces, replace(faces, shards=http.url))
    )
    loaded = load_labelled_images(near, 32, per_domain=20)
    http.delay_seconds = 0.2
    labels = far.labels_in_order(0, loaded.locations)
    assert torch.equal(torch.stack(labels), loaded.labels)
    assert http.peak >= 10


def test_the_fingerprint_covers_all_sources_and_their_order(joint, faces, kinds):
    swapped = open_sources(DataConfig(sources={"kinds": kinds, "faces": faces}), "train")
    assert joint.fingerprint != swapped.fingerprint
    assert joint.num_images == 27 + 2 * 14


# Faults.


def test_a_source_needs_several_domains_or_binary_attributes(urls, joint):
    joint.check(with_references=False)
    config = DataConfig(sources={"faces": SourceConfig(urls["faces"])})
    with pytest.raises(UserError, match="has one domain"):
        open_sources(config, "train").check(with_references=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"binary": ["male", "old"], "exclusive": []}, "no attribute old"),
        ({"binary": [], "exclusive": [], "category": "black", "categories": ["7", "8"]},
         "attribute black is '-?1', not one of 7, 8"),
    ],
)  # fmt: skip
def test_an_invalid_attribute_is_reported_with_its_sample(faces, change, message):
    sources = open_sources(DataConfig(sources={"faces": replace(faces, **change)}), "train")
    with pytest.raises(UserError, match=f"sample train/0.* of shard train/.*: .*{message}"):
        sources.check_labels()
    with pytest.raises(UserError, match=f"{message}.*--data.on_bad_shard skip"):
        load(make_slots(sources), range(1))


@pytest.fixture(scope="module")
def partly_labelled(animals, tmp_path_factory):
    """A source of which one image in four has an attribute that is neither true nor false."""
    folder = tmp_path_factory.mktemp("partly_labelled")
    write_manifest(animals, folder / "m.jsonl", lambda i, _: {"male": 7 if i % 4 == 0 else i % 2})
    build(str(folder / "m.jsonl"), str(folder / "set"), val_fraction=0, shard_images=5)
    return DataConfig(sources={"faces": SourceConfig(str(folder / "set"), ["male"])})


def test_samples_without_a_label_can_be_replaced(partly_labelled):
    """A substitute has its own label, also where that label is the target of another slot."""
    sources, faults = open_sources(partly_labelled, "train"), 0
    slots = make_slots(sources, replace_unreadable=True)
    for step in range(3):
        loaded = [slots[step * BATCH_SIZE + i] for i in range(BATCH_SIZE)]
        y = torch.stack([slot.batch.y for slot in loaded])
        y_trg = torch.stack([slot.batch.y_trg for slot in loaded])
        assert torch.equal(y_trg, y[list(target_permutation(3, step, BATCH_SIZE))])
        faults += sum(len(slot.faults) for slot in loaded)
        assert all("attribute male is 7" in f.reason for slot in loaded for f in slot.faults)
    assert faults > 0


def test_sources_share_the_cache(faces, kinds, tmp_path):
    config = DataConfig(sources={"a": faces, "b": kinds}, cache=str(tmp_path), cache_gib=1e-6)
    with pytest.raises(UserError, match=r"data\.cache_gib: .* cannot hold"):
        open_sources(config, "train")
    sources = open_sources(replace(config, cache_gib=1.0), "train")
    assert {reader.cache for reader in sources.readers} == {sources.readers[0].cache} != {None}


def test_labels_follow_the_configuration(joint):
    assert joint.labels == Labels(
        (
            LabelSpace(
                "faces", ("black", "blond", "brown", "male"), True, (("black", "blond", "brown"),)
            ),
            LabelSpace("kinds", SPECIES, key="kind"),
        )
    )


# Checks before a run begins.


def sources_of(**sources):
    return json.dumps({name: dataclasses.asdict(source) for name, source in sources.items()})


def config_of(run, sources, *arguments):
    options = ["--run", str(run), "--data.shards", "", "--data.sources", sources]
    options += ["--recipe", "stargan"]
    return configs.parse(["--config", str(SMOKE), *options, *arguments])


def prepared_run(*arguments):
    with preparation.prepared_run(resolve(config_of(*arguments)), World()) as prepared:
        return prepared


def test_a_plan_has_all_sources(tmp_path, faces, kinds, joint):
    prepared = prepared_run(tmp_path / "run", sources_of(faces=faces, kinds=kinds))
    assert (prepared.sources.labels, prepared.sources.fingerprint) == (
        joint.labels,
        joint.fingerprint,
    )
    assert (prepared.start, prepared.state) == (0, None)


def test_a_plan_rejects_unreadable_labels_unless_samples_are_skipped(tmp_path, faces):
    sources = sources_of(faces=replace(faces, binary=["old"], exclusive=[]))
    with pytest.raises(UserError, match="no attribute old"):
        prepared_run(tmp_path / "run", sources)
    assert prepared_run(tmp_path / "run", sources, "--data.on_bad_shard", "skip").start == 0


@pytest.mark.parametrize("recipe", ["b", "c", "d", "e", "f"])
def test_a_plan_rejects_labels_that_the_recipe_cannot_use(tmp_path, faces, recipe):
    with pytest.raises(
        UserError, match=f"recipe: {recipe} .* or use --recipe with one of stargan, a, c_acgan"
    ):
        prepared_run(tmp_path / "run", sources_of(faces=faces), "--recipe", recipe)


def test_a_run_is_resumed_only_on_the_same_sources(tmp_path, faces, kinds, urls):
    run = str(tmp_path / "run")
    sources = prepared_run(run, sources_of(faces=faces, kinds=kinds)).sources
    config = config_of(run, sources_of(faces=faces, kinds=kinds))
    manifest = {"config": configs.to_dict(config), "domains": sources.domains}
    manifest |= {"data": sources.fingerprint, "labels": sources.labels.to_dict()}
    checkpoints.save(run, 3, CheckpointState({"G.w": torch.zeros(1)}, {}, {}, {}), manifest)
    assert checkpoints.find(run).manifest.labels == sources.labels
    shutil.copytree(urls["faces"], tmp_path / "copy")
    moved = replace(faces, shards=str(tmp_path / "copy"))
    assert prepared_run(run, sources_of(faces=moved, kinds=kinds)).start == 3
    repacked = replace(kinds, shards=urls["kinds_repacked"])
    for order in ({"kinds": kinds, "faces": faces}, {"faces": faces, "kinds": repacked}):
        with pytest.raises(UserError, match="was trained on other shards than"):
            prepared_run(run, sources_of(**order))


# A run, from the first step to translations of image files.


@pytest.fixture(scope="module")
def finished(faces, kinds, tmp_path_factory):
    """A run on both sources, in which G has been updated once on each."""
    run = tmp_path_factory.mktemp("run") / "joint"
    assert trainer.train(joint_run(run, faces, kinds, steps=11)) == trainer.FINISHED
    return run


def joint_run(run, faces, kinds, steps, **options):
    options = {"recipe": "stargan", "steps": steps, "monitor.sample_every": 11} | options
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return config_of(run, sources_of(faces=faces, kinds=kinds), *arguments)


@pytest.mark.parametrize("stop", [3, 9])
def test_a_resumed_run_on_two_sources_equals_an_uninterrupted_run(
    tmp_path, faces, kinds, finished, stop
):
    """Stop also between the updates of G on the first source and on the second."""
    trainer.train(joint_run(tmp_path / "run", faces, kinds, steps=stop))
    resumed = joint_run(tmp_path / "run", faces, kinds, steps=11, **{"data.workers": 1})
    assert trainer.train(resumed) == trainer.FINISHED
    assert_same_bits(tmp_path / "run", finished)


def test_a_run_on_two_sources_saves_its_labels_and_latent_grids(finished, joint):
    manifest = checkpoints.find(str(finished)).manifest
    assert (manifest.labels, manifest.domains) == (joint.labels, joint.domains)
    names = {path.name for path in (finished / "samples").iterdir()}
    assert names == {"latent_00000000.png", "latent_00000011.png"}  # no reference grids


def test_image_files_are_translated_with_the_labels_of_one_source(
    finished, animals, tmp_path, monkeypatch
):
    files = [str(path) for path in sorted(animals.glob("cat/*"))[:2]]
    label_options = [
        "--set",
        "faces",
        "--attributes",
        "male=1",
        "--targets",
        "male",
        "dog",
        "--latents=3",
    ]
    arguments = [
        "sample",
        "--run",
        str(finished),
        "--out",
        str(tmp_path),
        "--sources",
        *files,
        *label_options,
    ]
    monkeypatch.setattr("sys.argv", arguments)
    sample.main()
    with Image.open(tmp_path / "latent_step_00000011.png") as grid:
        # The recipe has no latents: there is one translation to each target.
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2 + HEADER_PIXELS)
