"""Only tokens with a label count; the loss is its formula."""

from __future__ import annotations

import torch

from kiban import zoo
from kiban.data.loader import Loader
from kiban.families.bert import Bert, BertConfig, BertTagger
from kiban.objectives.tagging import Tagging
from kiban.train.settings import TrainConfig
from kiban.train.trainer import Trainer

CONFIG = BertConfig(vocab_size=20, num_layers=2, dim=32, num_heads=2, ffn_dim=64, max_seq_len=8, dropout=0.0)


def tagger() -> BertTagger:
    return zoo.initialise(BertTagger(Bert(CONFIG), 3), torch.Generator().manual_seed(0)).eval()


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, 20, (4, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[3, 5:] = False
    labels = torch.where(mask, tokens % 3, -100)
    labels[:, 0] = -100
    return {"tokens": tokens, "mask": mask, "labels": labels}


def test_the_loss_sums_over_labelled_tokens() -> None:
    module, given = tagger(), batch()
    p = module(given["tokens"], mask=given["mask"]).detach().log_softmax(-1)
    places = [(b, t) for b in range(4) for t in range(8) if given["labels"][b, t] != -100]
    expected = -sum(float(p[b, t, given["labels"][b, t]]) for b, t in places)
    objective = Tagging(module)
    assert int(objective.count(given)) == len(places) == 4 * 7 - 3
    torch.testing.assert_close(objective(given).total.item(), expected, rtol=1e-5, atol=1e-4)


def test_accuracy_counts_right_labels_only() -> None:
    module, given = tagger(), batch()
    answers = module(given["tokens"], mask=given["mask"]).argmax(-1)
    given["labels"] = torch.where(given["labels"] == -100, -100, answers)
    given["labels"][0, 1] = (answers[0, 1] + 1) % 3
    assert float(Tagging(module)(given).metrics["accuracy"]) == 4 * 7 - 3 - 1


def test_segments_reach_the_model() -> None:
    module, given = tagger(), batch()
    without = Tagging(module)(given).total
    assert Tagging(module)({**given, "segments": torch.ones_like(given["tokens"])}).total != without


def test_a_tagger_learns_the_label_of_each_token() -> None:
    module, given = tagger(), batch()
    rows = list(range(4))
    loader = Loader(rows, lambda ids: {name: tensor[ids] for name, tensor in given.items()}, batch_size=4, seed=0)
    Trainer(Tagging(module), module, loader, TrainConfig(steps=60, batch_size=4, micro_batch_size=2, lr=3e-3)).run()
    loss = Tagging(module)(given)
    assert float(loss.metrics["accuracy"]) == 25
