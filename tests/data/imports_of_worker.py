"""Driver: print the modules that a loader worker imports for its batches.

Usage: python imports_of_worker.py SHARDS STORAGE_OPTIONS
"""

import json
import sys

from stargan_dist import storage
from stargan_dist.config import DataConfig, StorageConfig
from stargan_dist.data.loading import training_loader
from stargan_dist.data.sources import open_sources
from stargan_dist.data.stream import Slots
from stargan_dist.data.workers import iterate

BATCH_SIZE = 4
OF_THE_START = "multiprocessing."  # what the rank imports to start a worker


class Recorded(Slots):
    """Slots that print what has been imported since the start."""

    def __getitem__(self, slot):
        output = super().__getitem__(slot)
        new = {name for name in {*sys.modules} - BEFORE if not name.startswith(OF_THE_START)}
        print(json.dumps(sorted(new)), flush=True)
        return output


if __name__ == "__main__":
    storage.configure(StorageConfig(options=json.loads(sys.argv[2])))
    sources = open_sources(DataConfig(sys.argv[1]), "train")
    slots = Recorded(sources, 0, 32, 5, BATCH_SIZE, fast_decoding=True)
    loader = training_loader(
        slots, range(2), rank=0, world_size=1, workers=1, start_method="fork", pin_memory=False,
        ahead_bytes=2**20,
    )  # fmt: skip
    BEFORE = {*sys.modules}
    for _ in iterate(loader):
        pass
