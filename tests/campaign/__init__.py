"""The fault campaign: random faults in real trainings, each compared with an unbroken run.

`python -m tests.campaign --seed 0 --minutes 30`. A *try* is one training with one fault. Its name,
such as `kill-17`, and the seed determine everything that is random about it.
"""

import os

# Before torch is imported: runs are compared to the bit, and several run at once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
# Credentials for the S3 server of a try, and no requests to the metadata service of a cloud.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
