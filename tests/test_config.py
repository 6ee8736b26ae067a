"""Configurations: defaults, files and options, errors, data sources, resuming."""

import json
from pathlib import Path

import pytest
import yaml

from stargan_dist import config as configs
from stargan_dist.config import SourceConfig
from stargan_dist.errors import UserError
from stargan_dist.objectives.recipes import resolve

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PRESETS = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("comparison/*.yaml")])
REQUIRED = ["--run", "r", "--data.shards", "s"]
ZERO = ["--engine.name", "deepspeed", "--engine.zero_stage"]
SUMMED = ["--schedule", "summed"]


def resolved(config):
    """Return a configuration with the recipe's numbers in place of nulls."""
    return resolve(config).config


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_presets_are_valid_and_name_run_and_shards(preset):
    config = configs.parse(["--config", str(preset)])
    assert config.run
    assert all(source.shards for source in config.data.all_sources.values())


def test_defaults_are_those_of_the_paper():
    c = resolved(configs.parse(REQUIRED))
    assert (c.batch_size, c.steps, c.model.image_size) == (8, 100_000, 256)
    assert (c.optim.lr, c.optim.lr_mapping, c.optim.betas) == (1e-4, 1e-6, (0.0, 0.99))
    assert (c.optim.weight_decay, c.optim.ema) == (1e-4, 0.999)
    assert (c.loss.reg, c.loss.sty, c.loss.cyc, c.loss.ds) == (1, 1, 1, 1)
    assert (c.model.latent_dim, c.model.style_dim, c.model.mapping_dim) == (16, 64, 512)


def test_later_files_override_earlier_ones_and_the_command_line_overrides_files(tmp_path):
    (tmp_path / "a.yaml").write_text("optim:\n  lr: 1e-3\n  ema: 0.9\nbatch_size: 2\n")
    (tmp_path / "b.yaml").write_text("optim:\n  lr: 2e-3\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = configs.parse([*files, "--batch_size", "4", *REQUIRED])
    assert (config.optim.lr, config.optim.ema, config.batch_size) == (2e-3, 0.9, 4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--optim.lrr", "1"], "optim.lrr"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--optim.lr", "-1"], "optim.lr"),
        (["--steps", "0"], "steps"),
        (["--steps", "1.5"], "steps"),
        (["--model.mapping", "tree"], "model.mapping"),
        (["--model.image_size", "48"], "model.image_size"),
        (["--model.image_size", "16"], "model.image_size"),
        (["--model.image_size", "2048"], "model.image_size"),
        (["--model.w_hpf", "-1"], "model.w_hpf"),
        (["--data.workers", "-1"], "data.workers"),
        (["--optim.ema", "1"], "optim.ema"),
        (["--optim.betas", "[0, 1.5]"], "optim.betas"),
        (["--optim.weight_decay", "-1"], "optim.weight_decay"),
        (["--loss.ds_iter", "0"], "loss.ds_iter"),
        (["--run", ""], "--run"),
        (["--data.shards", ""], "--data.shards"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--engine.zero_stage", "4"], "engine.zero_stage"),
        (["--engine.accumulate", "0"], "engine.accumulate"),
        (["--engine.timeout_seconds", "0"], "engine.timeout_seconds"),
        (["--engine.offload_optimizer", "true"], "--engine.name deepspeed"),
        ([*ZERO, "0", "--engine.offload_optimizer", "true"], "engine.offload_optimizer"),
        (["--engine.deepspeed_config", "a.json"], "--engine.name deepspeed"),
        ([*ZERO, "2", "--engine.offload_parameters", "true"], "engine.offload_parameters"),
        ([*ZERO, "3"], "--schedule summed"),
        (["--engine.zero_stage", "3", *SUMMED], "--engine.name deepspeed"),
        ([*ZERO, "1", "--engine.channels_last", "on"], "engine.channels_last"),
        ([*ZERO, "3", *SUMMED, "--engine.compile", "true"], "engine.compile"),
        ([*ZERO, "3", *SUMMED, "--optim.clip.G", "1"], "optim.clip"),
        ([*ZERO, "1", "--precision", "float64"], "precision"),
        ([*ZERO, "1", "--precision", "float16"], "precision"),
        (["--optim.clip.G", "-1"], "optim.clip"),
        (["--optim.lr_scaling", "cubic"], "optim.lr_scaling"),
    ],
)
def test_an_error_is_one_line_that_names_the_field(options, field):
    with pytest.raises(UserError) as error:
        configs.parse([*REQUIRED, *options])
    assert field in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_in_a_file_are_rejected(tmp_path):
    (tmp_path / "a.yaml").write_text("optim:\n  speed: 1\n")
    with pytest.raises(UserError, match="speed"):
        configs.parse(["--config", str(tmp_path / "a.yaml"), *REQUIRED])


def aliases(begin, levels):
    """Return YAML in which each list holds the one before nine times."""
    lists = [f"{begin}a0: &a0 [x]", *(f"{begin}a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]"
             for i in range(levels))]  # fmt: skip
    return "\n".join(lists)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases("", 30), "aliases that expand to more than 100000 values"),
        ("storage:\n  options:\n    s3:\n" + aliases("      ", 30), "aliases that expand to more"),
        ("storage: {options: {s3: &a {b: *a}}}", "aliases that expand to more than"),
        ("#" * 2**20 + "\n", "more than 1048576 characters"),
        ("run: " + "[" * 10**5, "exceeded maximum nesting depth"),
        ("steps: " + "9" * 5000, "Exceeds the limit (4300 digits)"),
        ("steps: !!timestamp 2020-99-99", "month must be in 1..12"),
        ("steps: !!timestamp x", "Problems parsing config"),
        (b"run: \xff", "--config: a file is not UTF-8"),
        ("model: null", "model: expected settings by name, not None"),
        ("optim: {clip: 3}", "optim.clip: expected settings by name, not 3"),
        ("engine: !!set {a, b}", "engine: expected settings by name, not {"),
        ("x" * 10**5, "Unexpected config: xxx"),
        ('data: {sources: {"a\\n\\e": {}}, shards: ""}', r"data.sources.a\n\x1b"),
        ("data: {sources: null}", "data.sources: must have a value, not null"),
    ],
)
def test_a_file_of_a_stranger_costs_one_line(tmp_path, text, message):
    (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        configs.parse([*REQUIRED, "--config", str(tmp_path / "a.yaml")])
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 1100


def test_a_few_aliases_are_welcome(tmp_path):
    options = "{options: {s3: &a {key: [1, 2]}, gs: *a, az: *a}}"
    (tmp_path / "a.yaml").write_text(f"storage: {options}")
    config = configs.parse([*REQUIRED, "--config", str(tmp_path / "a.yaml")])
    assert config.storage.options["az"] == {"key": [1, 2]}


def test_the_global_batch_must_divide_evenly_among_the_ranks():
    config = configs.parse([*REQUIRED, "--batch_size", "6"])
    configs.check_world(config, 3)
    for world_size, remedy in ((4, "8 works"), (8, "8 works")):
        with pytest.raises(UserError, match=remedy):
            configs.check_world(config, world_size)


def test_the_global_batch_must_divide_evenly_among_micro_batches_too():
    config = configs.parse([*REQUIRED, "--batch_size", "12", "--engine.accumulate", "3"])
    configs.check_world(config, 4)
    with pytest.raises(UserError, match=r"processes, 8 times engine.accumulate, 3; 24 works"):
        configs.check_world(config, 8)


def test_a_micro_batch_has_whole_pairs():
    config = configs.parse([*REQUIRED, "--batch_size", "12", "--engine.accumulate", "3"])
    configs.check_world(config, 2, 2)
    with pytest.raises(UserError, match=r"accumulate, 3, times 2 for pairs; 24 works"):
        configs.check_world(config, 4, 2)


def test_a_configuration_survives_the_round_trip_through_dict_and_yaml(tmp_path):
    config = configs.parse([*REQUIRED, "--optim.lr", "3e-4", "--model.mapping", "heads"])
    assert configs.from_dict(configs.to_dict(config)) == config
    (tmp_path / "c.yaml").write_text(configs.to_yaml(config))
    assert configs.parse(["--config", str(tmp_path / "c.yaml")]) == config


def test_resuming_with_another_configuration_is_rejected_with_all_differences():
    saved = resolved(configs.parse(REQUIRED))
    allowed_changes = configs.parse(
        [*REQUIRED, "--steps", "7", "--data.workers", "0", "--monitor.latents", "9"]
    )
    configs.check_resumable(saved, resolved(allowed_changes), "r")
    configs.check_resumable(saved, resolved(configs.parse([*REQUIRED, *ZERO, "2"])), "r")
    with pytest.raises(UserError, match="schedule was published, is summed"):
        configs.check_resumable(saved, resolved(configs.parse([*REQUIRED, *SUMMED])), "r")
    other = resolved(configs.parse([*REQUIRED, "--optim.lr", "2e-4", "--seed", "1"]))
    with pytest.raises(UserError, match=r"optim.lr was 0.0001, is 0.0002; seed was 0, is 1"):
        configs.check_resumable(saved, other, "r")


def test_help_shows_the_docstrings_of_fields(capsys):
    with pytest.raises(SystemExit):
        configs.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for docstring in ("Learning rate of F", "Length of a style code", "Steps between checkpoints"):
        assert docstring in text


# Data sources: several datasets, each with its own labels.

FACES = {"shards": "f", "binary": ["black", "blond", "male"], "exclusive": [["black", "blond"]]}
KINDS = {"shards": "k", "category": "kind", "categories": ["cat", "dog"]}


def parse_sources(sources, *options):
    return configs.parse(["--run", "r", "--data.sources", json.dumps(sources), *options])


def test_sources_come_from_files_and_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": {"sources": {"faces": FACES}}}))
    file, shards = ["--config", str(tmp_path / "a.yaml")], "--data.sources.faces.shards"
    config = configs.parse(["--run", "r", *file, shards, "s3://b/x"])
    assert config.data.sources == {"faces": SourceConfig(**FACES | {"shards": "s3://b/x"})}
    config = configs.parse(["--run", "r", shards, "x", "--data.sources.faces.binary", "[male]"])
    assert config.data.sources == {"faces": SourceConfig("x", ["male"])}


def test_sources_and_their_order_survive_the_round_trip_through_yaml_and_json():
    config = parse_sources({"faces": FACES, "kinds": KINDS})
    assert list(config.data.sources) == ["faces", "kinds"]
    for values in (configs.to_dict(config), yaml.safe_load(configs.to_yaml(config))):
        loaded = configs.from_dict(json.loads(json.dumps(values)))
        assert loaded == config
        assert list(loaded.data.sources) == ["faces", "kinds"]


def test_labels_are_domains_only_with_a_single_source_without_other_labels():
    assert configs.parse(REQUIRED).data.by_domain
    assert parse_sources({"a": {"shards": "s"}}).data.by_domain
    assert not parse_sources({"a": {"shards": "s"}, "b": {"shards": "t"}}).data.by_domain
    assert not parse_sources({"faces": FACES}).data.by_domain


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FACES | {"shards": ""}, "data.sources.a.shards: name the shards"),
        (FACES | KINDS, "data.sources.a.binary: a data source has binary attributes or categories"),
        (FACES | {"binary": ["black", "blond", "black"]}, "data.sources.a.binary"),
        (FACES | {"exclusive": [["black", "brown"]]}, "brown must be among data.sources.a.binary"),
        (FACES | {"exclusive": [["black", "blond"], ["blond", "male"]]}, "a.exclusive: an attrib"),
        (FACES | {"exclusive": [["male"]]}, "a.exclusive: a group has at least two"),
        (KINDS | {"category": ""}, "data.sources.a.category: name the attribute"),
        (KINDS | {"categories": []}, "data.sources.a.categories: list the values of kind"),
        (KINDS | {"categories": ["cat", "cat"]}, "data.sources.a.categories: a category occurs"),
        (KINDS | {"colour": "red"}, "colour"),
    ],
)
def test_an_error_in_a_source_is_one_line_that_names_the_field(source, message):
    with pytest.raises(UserError) as error:
        parse_sources({"a": source})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_either_shards_or_sources_must_be_given():
    with pytest.raises(UserError, match=r"data\.shards: names a single dataset"):
        parse_sources({"faces": FACES}, "--data.shards", "s")
    with pytest.raises(UserError, match=r"name the shards .* or data\.sources"):
        configs.parse(["--run", "r"])
    with pytest.raises(UserError, match=r"data\.sources: a name consists of letters"):
        parse_sources({"a b": FACES})


@pytest.mark.parametrize("pair", ["[cat]", "[cat, cat]", "[cat, dog, wild]"])
def test_a_pair_is_two_different_domains(pair):
    assert configs.parse([*REQUIRED, "--data.pair", "[cat, dog]"]).data.pair == ["cat", "dog"]
    with pytest.raises(UserError, match=r"data\.pair: name two different domains"):
        configs.parse([*REQUIRED, "--data.pair", pair])


def test_a_pair_belongs_to_a_single_dataset_and_is_fixed_for_a_run():
    with pytest.raises(UserError, match=r"data\.pair: names two domains of data\.shards"):
        parse_sources({"a": {"shards": "s"}}, "--data.pair", "[cat, dog]")
    saved = configs.parse([*REQUIRED, "--data.pair", "[cat, dog]"])
    with pytest.raises(UserError, match=r"data\.pair was \['cat', 'dog'\], is \['dog', 'cat'\]"):
        configs.check_resumable(saved, configs.parse([*REQUIRED, "--data.pair", "[dog, cat]"]), "r")


def test_a_resumed_run_may_change_the_shards_of_a_source_and_nothing_else():
    saved = parse_sources({"a": FACES})
    configs.check_resumable(saved, parse_sources({"a": FACES | {"shards": "elsewhere"}}), "r")
    for sources in ({"b": FACES}, {"a": FACES | {"exclusive": []}}, {"a": FACES, "b": KINDS}):
        with pytest.raises(UserError, match=r"data\.sources\."):
            configs.check_resumable(saved, parse_sources(sources), "r")


def test_a_run_without_recipe_fields_is_resumed():
    """Configurations saved by versions without recipes lack these fields."""
    config = resolved(configs.parse([*REQUIRED, "--loss.ds", "2"]))
    saved = configs.to_dict(config)
    for path in ("recipe", "loss.cls", "loss.ms", "optim.decay_begin", "optim.decay_end",
                 "data.sources"):  # fmt: skip
        *sections, name = path.split(".")
        del (saved[sections[0]] if sections else saved)[name]
    loaded = resolved(configs.from_dict(saved))
    configs.check_resumable(loaded, config, "r")
    with pytest.raises(UserError, match=r"loss.ds was 2.0, is 1.0"):
        configs.check_resumable(loaded, resolved(configs.parse(REQUIRED)), "r")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.decay_end", "50000", "--steps", "9"], "optim.decay_begin"),
        (["--optim.decay_begin", "250000"], "optim.decay_begin"),
        (["--optim.decay_end", "100000", "--steps", "9"], "optim.decay_begin"),
        (["--steps", "200001"], "steps: learning rates reach 0 at step 200000"),
        (
            ["--recipe", "f", "--optim.decay_begin", "5"],
            "optim.decay_begin: has no effect where optim.decay_end is 0",
        ),
    ],
)
def test_contradictory_decay_of_learning_rates_is_rejected(options, message):
    """One of two contradictory fields may come from the recipe."""
    with pytest.raises(UserError, match=message):
        configs.check(resolved(configs.parse([*REQUIRED, "--recipe", "stargan", *options])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps: must be >0, not 0"),
        (["--data.workers", "-1"], "data.workers: must be >=0, not -1"),
        (["--seed", "-1"], "seed: must be >=0 and <9223372036854775808, not -1"),
        (["--data.cache_gib", "inf"], "data.cache_gib: must be >0 and finite, not inf"),
        (["--data.cache_gib", "nan"], "data.cache_gib: must be >0 and finite, not nan"),
        (["--optim.lr", "nan"], "optim.lr: expected a finite number or null, not nan"),
        (
            ["--engine.timeout_seconds", "inf"],
            "engine.timeout_seconds: must be >0 and <=1000000000.0, not inf",
        ),
        (
            ["--storage.timeout_seconds", "1e300"],
            "storage.timeout_seconds: must be >0 and <=1000000000.0, not 1e300",
        ),
        (
            ["--storage.wait_seconds", "inf"],
            "storage.wait_seconds: must be >=0 and <=1000000000.0, not inf",
        ),
        (["--run", "a\udcff"], r"'run': 'a\udcff' is not UTF-8; rename it"),
        (["--optim.lr", "quick"], "optim.lr: expected a finite number or null, not quick"),
        (
            ["--model.image_size", "48"],
            "model.image_size: must be one of 32, 64, 128, 256, 512, 1024, not 48",
        ),
    ],
)
def test_errors_of_types_are_clear(options, message):
    with pytest.raises(UserError) as caught:
        configs.parse([*REQUIRED, *options])
    assert str(caught.value) == message


def test_infinite_numbers_in_a_file_are_rejected(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("engine: {timeout_seconds: .inf}")
    with pytest.raises(UserError, match=r"^engine\.timeout_seconds: must be .*, not inf$"):
        configs.parse([*REQUIRED, "--config", str(file)])


def test_a_configuration_that_is_not_utf8_is_rejected(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(b"run: \xff")
    with pytest.raises(UserError, match=r"^--config: a file is not UTF-8 .*; save it as UTF-8$"):
        configs.parse([*REQUIRED, "--config", str(file)])


def test_numbers_are_plain():
    """Saved configurations hold no types of the parser."""
    config = configs.parse([*REQUIRED, "--optim.lr", "1e-3", "--seed", "3"])
    assert {type(config.seed), type(config.optim.lr), type(config.storage.wait_seconds)} == {
        int,
        float,
    }
