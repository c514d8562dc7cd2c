"""What the report calls each way to adopt and each model, in Japanese and in English."""

from __future__ import annotations

from pathlib import Path

from kiban.adopt.report.formats import Lang

# What a manager calls each way to adopt a model: name, then what it does.
STRATEGIES: dict[str, dict[Lang, tuple[str, str]]] = {
    "baseline": {
        "ja": ("TF-IDF＋線形（基準）", "基盤モデルを使わず、文字の並びの頻度から分類します。上回るべき基準です。"),
        "en": (
            "TF-IDF baseline",
            "No foundation model: classifies by character and word frequencies. The thing to beat.",
        ),
    },
    "zero_shot": {
        "ja": ("ゼロショット", "学習させずに、区分の名前のうちどれが続きそうかをモデルに比べさせます。"),
        "en": ("Zero-shot", "No training: the model weighs which class name would follow the text."),
    },
    "few_shot": {
        "ja": ("フューショット", "よく似た学習データを例として数件見せてから、区分を選ばせます。"),
        "en": ("Few-shot", "Shows the model the most similar labelled rows as examples, then lets it choose a class."),
    },
    "linear_head": {
        "ja": ("埋め込み＋線形分類", "モデルは変えずに文をベクトルにし、その上の小さな分類器だけを学習します。"),
        "en": (
            "Embeddings + linear head",
            "Leaves the model as it is and trains only a small classifier on its vectors.",
        ),
    },
    "finetune_encoder": {
        "ja": ("ファインチューニング", "エンコーダーの重みすべてを、このデータで追加学習します。"),
        "en": ("Fine-tuned encoder", "Trains all weights of the encoder further on these data."),
    },
    "lora_decoder": {
        "ja": ("LoRA", "生成モデルの重みは固定し、差分にあたる小さな行列だけを学習します。"),
        "en": ("LoRA", "Freezes the generative model and trains small matrices that are added to its weights."),
    },
    "image_baseline": {
        "ja": ("色とHOG＋線形（基準）", "基盤モデルを使わず、色の分布と輪郭の向きから分類します。上回るべき基準です。"),
        "en": (
            "Colours and HOG baseline",
            "No foundation model: classifies by the colours and the directions of edges. The thing to beat.",
        ),
    },
    "image_zero_shot": {
        "ja": ("ゼロショット", "学習させずに、区分の名前のうち画像に最も近いものをモデルに選ばせます。"),
        "en": ("Zero-shot", "No training: the model tells which class name is closest to the picture."),
    },
    "image_neighbours": {
        "ja": ("k近傍法", "モデルのベクトルが近い学習画像を探し、その区分の多数決で答えます。"),
        "en": (
            "Nearest neighbours",
            "Finds the training pictures with the closest vectors and lets their classes vote.",
        ),
    },
    "image_head": {
        "ja": ("埋め込み＋線形分類", "モデルは変えずに画像をベクトルにし、その上の小さな分類器だけを学習します。"),
        "en": (
            "Embeddings + linear head",
            "Leaves the model as it is and trains only a small classifier on its vectors of pictures.",
        ),
    },
    "small_cnn": {
        "ja": ("小さなCNN", "事前学習なしに、小さな畳み込みネットワークをこの画像だけで学習します。"),
        "en": ("Small CNN", "Trains a small convolutional network on these pictures alone, without pretraining."),
    },
    "image_lora": {
        "ja": ("LoRA", "画像モデルの重みは固定し、差分にあたる小さな行列と分類器だけを学習します。"),
        "en": (
            "LoRA",
            "Freezes the vision model and trains a classifier and small matrices that are added to its weights.",
        ),
    },
}


def strategy_name(strategy: str, lang: Lang) -> str:
    """What people call a strategy."""
    known = STRATEGIES.get(strategy)
    return known[lang][0] if known else strategy


def model_name(model: str | None) -> str:
    """A catalogue name, or the last part of a folder."""
    return Path(model).name if model else ""


def candidate_name(strategy: str, model: str | None, lang: Lang) -> str:
    """A candidate as named in sentences."""
    name = strategy_name(strategy, lang)
    if not model:
        return name
    return f"{name}（{model_name(model)}）" if lang == "ja" else f"{name} ({model_name(model)})"
