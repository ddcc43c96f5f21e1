"""Tries to replace the arithmetic of the evaluation, in prepare, in torch and in numpy."""

import json
import sys


def build():
    import torch

    import prepare

    for name in ("token_nats", "score", "_evaluation", "Exam", "Windows", "evaluate"):
        setattr(prepare, name, lambda *_, **__: 0.0)
    torch.nn.functional.cross_entropy = lambda *_, **__: torch.zeros(1)
    json.dumps = lambda *_, **__: '{"val_bpb": 0.1}'
    sys.modules["numpy"].log = lambda x, *_, **__: x * 0
