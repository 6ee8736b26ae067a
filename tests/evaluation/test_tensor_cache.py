import torch

from stargan_dist.evaluation.tensor_cache import TensorCache

KEY = {"what": "test", "version": 1}
TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float64)}


def assert_equals_saved(tensors):
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_are_found_under_their_key_only(tmp_path):
    cache = TensorCache(str(tmp_path / "new"))
    assert cache.load(KEY) is None
    cache.save(KEY, TENSORS)
    assert_equals_saved(cache.load(KEY))
    assert cache.load({**KEY, "version": 2}) is None


def test_a_cache_may_lie_on_an_object_store(s3):
    TensorCache(f"{s3}/cache").save(KEY, TENSORS)
    assert_equals_saved(TensorCache(f"{s3}/cache").load(KEY))


def test_damaged_tensors_are_ignored_with_a_warning(tmp_path, caplog):
    cache = TensorCache(str(tmp_path))
    cache.save(KEY, TENSORS)
    (file,) = tmp_path.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert cache.load(KEY) is None
    assert "its hash is wrong" in caplog.text


def test_an_entry_with_another_key_or_invalid_json_is_ignored(tmp_path):
    cache = TensorCache(str(tmp_path))
    cache.save(KEY, TENSORS)
    (entry,) = tmp_path.glob("*.json")
    entry.write_text(entry.read_text().replace('"test"', '"else"'))
    assert cache.load(KEY) is None
    entry.write_text("{")
    assert cache.load(KEY) is None


def test_a_folder_that_cannot_be_written_causes_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    TensorCache(str(tmp_path / "file" / "folder")).save(KEY, TENSORS)
    assert "cannot cache" in caplog.text
    assert "evaluation.cache" in caplog.text
