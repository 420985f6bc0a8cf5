"""The arithmetic in torch, for devices other than the CPU: equal in bytes where the format is."""

import torch

# Our own threads share the cores already, and sums must not depend on their number.
torch.set_num_threads(1)
