import torch

from stargan_dist.evaluation.tensor_cache import TensorCache

FACTS = {"what": "test", "version": 1}
TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float64)}


def assert_same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_what_is_kept_is_found_by_its_facts(tmp_path):
    store = TensorCache(str(tmp_path / "new"))
    assert store.load(FACTS) is None
    store.save(FACTS, TENSORS)
    assert_same(store.load(FACTS))
    assert store.load({**FACTS, "version": 2}) is None


def test_on_an_object_store(s3):
    TensorCache(f"{s3}/kept").save(FACTS, TENSORS)
    assert_same(TensorCache(f"{s3}/kept").load(FACTS))


def test_damaged_tensors_are_not_used(tmp_path, capsys):
    store = TensorCache(str(tmp_path))
    store.save(FACTS, TENSORS)
    (file,) = tmp_path.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert store.load(FACTS) is None
    assert "its hash is wrong" in capsys.readouterr().err


def test_facts_under_a_wrong_name_are_not_believed(tmp_path, capsys):
    store = TensorCache(str(tmp_path))
    store.save(FACTS, TENSORS)
    (row,) = tmp_path.glob("*.json")
    row.write_text(row.read_text().replace('"test"', '"else"'))
    assert store.load(FACTS) is None
    row.write_text("{")
    assert store.load(FACTS) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    TensorCache(str(tmp_path / "file" / "folder")).save(FACTS, TENSORS)
    told = capsys.readouterr().err
    assert "cannot keep" in told
    assert "evaluation.cache" in told
