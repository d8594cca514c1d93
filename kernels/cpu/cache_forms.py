"""The forms in which the KV cache stores numbers: float32, bfloat16, or FP8 (e4m3) divided by a scale."""

import torch

FLOAT32, BFLOAT16, FP8 = 4, 2, 1
"""The forms; each constant is the form's size in bytes."""
STORED = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float8_e4m3fn: FP8}
"""The form of each dtype that the cache may have."""
