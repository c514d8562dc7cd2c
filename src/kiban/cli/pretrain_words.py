"""What `kiban pretrain` says, in Japanese and English."""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "corpus": {
        "ja": "コーパス: 学習 {documents:,} 文書、{tokens:,} トークン ({per:.2f} 文字/トークン)、検証 {held:,} 文書",
        "en": "Corpus: {documents:,} documents, {tokens:,} tokens ({per:.2f} characters each), {held:,} held out",
    },
    "busy": {
        "ja": "他の処理で忙しいので、1スレッドで学習します (全スレッド {all:,.0f}、1スレッド {one:,.0f} トークン/秒)",
        "en": "This machine is busy: one thread is used ({one:,.0f} tokens/s, against {all:,.0f} with all threads)",
    },
    "rung": {
        "ja": "  {size}: {parameters:,} パラメータ、{rate:,.0f} トークン/秒、この時間で {tokens:,.0f} トークン",
        "en": "  {size}: {parameters:,} parameters, {rate:,.0f} tokens/s, {tokens:,.0f} tokens in this time",
    },
    "size": {
        "ja": "大きさ: {size} (この時間ではスケーリング則による最良)",
        "en": "Size: {size}, the best for this time by the scaling law",
    },
    "run": {"ja": "実行フォルダ: {folder}", "en": "Run folder: {folder}"},
    "stopped": {
        "ja": "中断しました。続きは: kiban pretrain --resume {folder}",
        "en": "Interrupted. To go on: kiban pretrain --resume {folder}",
    },
    "passes": {
        "ja": "文章を {passes} 回読んだので終わりました (それ以上は丸暗記になります。文章を増やしてください)",
        "en": "Ended early, after {passes} passes over the text: it would learn it by heart. Give more text to use the time",
    },
    "better": {
        "ja": "検証データで n-gram モデルより良い: {ours:.3f} 対 {ngram:.3f} ビット/文字",
        "en": "Better than the n-gram model on held-out text: {ours:.3f} against {ngram:.3f} bits per character",
    },
    "worse": {
        "ja": "n-gram モデルに及ばない: {ours:.3f} 対 {ngram:.3f} ビット/文字。時間か文章を増やしてください",
        "en": "Not yet as good as an n-gram model: {ours:.3f} against {ngram:.3f} bits per character; give more time",
    },
    "model": {"ja": "モデル: {final}  (試す: kiban run {final})", "en": "Model: {final}  (try it: kiban run {final})"},
}
