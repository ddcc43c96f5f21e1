"""Tries to find the last target of a row at the begin of another row of its batch."""


def change(x, logits):
    logits = logits.clone()
    logits[:, -1].scatter_(1, x[:, :1].roll(-1, 0), 5.0)
    return logits
