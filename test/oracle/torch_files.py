"""Makes test/golden/torch-tiny/: a small head as torch.save writes it, and the same tensors as safetensors.

    python -m pip install torch
    python test/oracle/torch_files.py test/golden/torch-tiny
"""
import json
import struct
import sys
from pathlib import Path

import torch

directory = Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
torch.manual_seed(1)


class Head(torch.nn.Module):
    """Every element type the reader knows, a parameter, a buffer, a view into a larger storage, tied weights, a scalar."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 4)
        self.half = torch.nn.Linear(4, 3, bias=False).half()
        self.brain = torch.nn.Linear(4, 3, bias=False).bfloat16()
        self.tied = torch.nn.Linear(8, 4, bias=False)
        self.tied.weight = self.fc.weight
        self.register_buffer("d2t", torch.arange(0, 10, 2))
        self.register_buffer("t2d", torch.arange(10) % 2 == 0)
        self.register_buffer("part", torch.arange(12.0).reshape(4, 3)[1:3])
        self.register_buffer("count", torch.tensor(7))


head = Head()
state = head.state_dict()  # an OrderedDict with the attribute _metadata: opcode BUILD
torch.save(state, directory / "pytorch_model.bin")
# Parameters themselves, in a plain dict: _rebuild_parameter. Twice as many, so that memo indices need four bytes.
torch.save({f"layers.{i}.weight": torch.nn.Parameter(torch.full((2, 1), float(i))) for i in range(30)}, directory / "parameters.bin")
torch.save(state, directory / "before-1.6.bin", _use_new_zipfile_serialization=False)
torch.save({"fc.weight": head.fc.weight.detach().t()}, directory / "transposed.bin")
torch.save({"model": state}, directory / "nested.bin")

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
header, data = {}, b""
for name, tensor in sorted(state.items(), key=lambda item: -item[1].element_size()):
    raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
    header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
(directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
