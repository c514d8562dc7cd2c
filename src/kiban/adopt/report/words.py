"""Every sentence of the report, in Japanese and in English, side by side so that they stay in step."""

from __future__ import annotations

import re

from kiban.adopt.report.formats import Lang

TEXT: dict[str, tuple[str, str]] = {
    "title": ("基盤モデル選定レポート", "Foundation model decision report"),
    "subtitle": (
        "{source}（「{text}」から「{label}」を判定・{labels}区分・{rows}件）",
        "{source}: from “{text}” to “{label}”, {labels} classes, {rows} rows",
    ),
    "subtitle_image": (
        "{source}（画像を判定・{labels}区分・{rows}枚）",
        "{source}: pictures into {labels} classes, {rows} pictures",
    ),
    "verdict_decided": ("決定", "Decided"),
    "verdict_undecided": ("判断保留", "Undecided"),
    "verdict_none_meets_requirements": ("該当なし", "None qualifies"),
    "headline_decided": ("「{name}」の採用をお勧めします。", "Adopt {name}."),
    "headline_undecided": (
        "まだ決め手がありません。現時点の第一候補は「{name}」です。",
        "Not settled yet. The best choice for now: {name}.",
    ),
    "headline_none_meets_requirements": (
        "要件をすべて満たす候補はありませんでした。",
        "No candidate meets all requirements.",
    ),
    "label_more": (
        "「{rival}」との優劣をはっきりさせるには、あと約{n}件のラベル付けが必要な見込みです。",
        "To tell it apart from {rival}, label about {n} more rows.",
    ),
    "label_more_image": (
        "「{rival}」との優劣をはっきりさせるには、あと約{n}枚のラベル付けが必要な見込みです。",
        "To tell it apart from {rival}, label about {n} more pictures.",
    ),
    "label_more_alone_image": (
        "結論を出すには、あと約{n}枚のラベル付けが必要な見込みです。",
        "To reach a conclusion, label about {n} more pictures.",
    ),
    "label_more_alone": (
        "結論を出すには、あと約{n}件のラベル付けが必要な見込みです。",
        "To reach a conclusion, label about {n} more rows.",
    ),
    "closest": (
        "以下の詳細は、品質（macro-F1）が最も高い「{name}」のものです。",
        "The details below are those of {name}, which has the highest quality (macro-F1).",
    ),
    "requirements": ("要件", "Requirements"),
    "no_requirements": ("要件の指定はありません。", "No requirements were given."),
    "met": ("満たす", "met"),
    "unmet": ("満たさない", "not met"),
    "measured_as": ("実測 {value}", "measured {value}"),
    "met_by": ("計測した{total}候補のうち{n}候補が満たす", "met by {n} of {total} measured candidates"),
    "not_measured": ("未計測", "not measured"),
    "quality": ("品質（macro-F1）", "Quality (macro-F1)"),
    "accuracy": ("正解率", "Accuracy"),
    "p95": ("応答時間（95%点）", "Latency (p95)"),
    "p95_note": ("中央値 {p50}", "median {p50}"),
    "cost": ("1,000件あたりの費用", "Cost per 1,000 requests"),
    "memory": ("メモリ使用量", "Memory"),
    "memory_note": ("モデルの大きさ {size}", "model size {size}"),
    "licence": ("ライセンス", "Licence"),
    "licence_unknown": ("不明", "unknown"),
    "commercial_True": ("商用利用可", "commercial use ok"),
    "commercial_False": ("商用利用不可", "no commercial use"),
    "commercial_None": ("商用利用の可否は不明", "commercial use unknown"),
    "ci": ("95%区間 {interval}", "95% interval {interval}"),
    "pareto": ("品質と費用", "Quality against cost"),
    "pareto_lead": (
        "左上ほど、安くて品質が高い候補です。線で結んだ候補は、より安くて同等以上に良いものがほかにありません"
        "（パレート最適）。縦棒は95%区間で、重なりが大きいほど差は不確かです。",
        "Up and to the left is better and cheaper. No other candidate is both better and cheaper than those on "
        "the line "
        "(the Pareto front). Bars are 95% intervals: the more they overlap, the less certain the difference.",
    ),
    "pareto_alt": (
        "費用と品質の散布図。{points}",
        "Scatter plot of quality against cost. {points}",
    ),
    "pareto_x": ("1,000件あたりの費用（{unit}・対数目盛）", "Cost per 1,000 requests ({unit}, log scale)"),
    "unit": ("円", "US dollars"),
    "recommended": ("推奨", "recommended"),
    "on_front": ("パレート最適", "on the front"),
    "off_front": ("その他", "others"),
    "without_cost": (
        "計測できなかった候補は図にありません：{names}。",
        "Not in the plot because they were not measured: {names}.",
    ),
    "nothing_measured": (
        "計測できた候補がないため、図はありません。",
        "No candidate could be measured, so there is no plot.",
    ),
    "candidates": ("候補の一覧", "All candidates"),
    "candidates_lead": (
        "品質の高い順です。番号は図と共通です。",
        "Best quality first. The numbers are those of the plots.",
    ),
    "number": ("番号", "No."),
    "candidate": ("候補", "Candidate"),
    "latency": ("応答時間\n中央値\n95%点", "Latency\nmedian\np95"),
    "throughput": ("一括処理", "In batches"),
    "training": ("学習時間", "Training"),
    "cost_column": ("1,000件\nあたりの費用", "Cost per\n1,000 requests"),
    "memory_column": ("メモリ\nモデルの大きさ", "Memory\nmodel size"),
    "status_finished": ("完了", "finished"),
    "status_stopped_early": ("途中で打ち切り", "stopped early"),
    "status_failed": ("失敗", "failed"),
    "status_skipped": ("対象外", "skipped"),
    "trained_on": ("{rows}で学習", "on {rows}"),
    "tested_on": ("テスト{rows}", "tested on {rows}"),
    "requirements_met": ("要件 {n}/{total}", "{n} of {total} met"),
    "methods": ("方法の説明", "What the methods do"),
    "comparisons": ("上位候補どうしの比較", "How sure is the difference?"),
    "comparisons_lead": (
        "同じテスト用データに対する答えを1件ずつ突き合わせて、差が偶然で起こりうる程度かどうかを調べました。",
        "The answers to the same test rows were compared one by one, to see whether chance could explain the "
        "difference.",
    ),
    "pair": ("組み合わせ", "Pair"),
    "against": ("{a} 対 {b}", "{a} against {b}"),
    "difference_f1": ("macro-F1の差", "Difference in macro-F1"),
    "difference_accuracy": ("正解率の差", "Difference in accuracy"),
    "judgement": ("判定", "Verdict"),
    "judged_better": (
        "「{a}」のほうが確かに正しい答えが多い",
        "{a} gives more right answers; chance does not explain it",
    ),
    "judged_open": (
        "差は偶然の範囲で、優劣は言えない",
        "chance could explain the difference; neither is better",
    ),
    "judged_mixed": (
        "macro-F1では「{a}」が上だが、正解数の差は偶然でも起こりうる",
        "{a} is better in macro-F1, but chance could explain the difference in right answers",
    ),
    "no_comparisons": (
        "計測できた候補が1つ以下のため、比較はありません。",
        "Fewer than two candidates were measured, so there is nothing to compare.",
    ),
    "classes": ("区分ごとの成績", "Scores by class"),
    "classes_lead": ("「{name}」のテスト用データでの成績です。", "Of {name}, on the test rows."),
    "class": ("区分", "Class"),
    "precision": ("適合率", "Precision"),
    "recall": ("再現率", "Recall"),
    "f1": ("F1", "F1"),
    "support": ("件数", "Rows"),
    "classes_note": (
        "適合率は「その区分と答えたもののうち正しかった割合」、再現率は「その区分のもののうち見つけられた割合」、"
        "F1は両者の調和平均です。",
        "Precision: of the rows given this class, the share that was right. Recall: of the rows of this class, "
        "the share "
        "that was found. F1 is their harmonic mean.",
    ),
    "confusion": ("どの区分を取り違えたか", "Which classes are mixed up"),
    "confusion_lead": (
        "行が正しい区分、列がモデルの答えです。対角線（青）が正解、それ以外（橙）が取り違えで、"
        "濃いほど割合が高くなります。",
        "Rows are the true classes, columns the answers. The diagonal (blue) is right, the rest (orange) is wrong; "
        "darker means a larger share of the row.",
    ),
    "confusion_alt": ("混同行列。{summary}", "Confusion matrix. {summary}"),
    "confusion_top": ("多かった取り違え", "Most frequent mix-ups"),
    "confusion_item": ("「{truth}」を「{predicted}」と答えた：{n}", "“{truth}” taken for “{predicted}”: {n}"),
    "confusion_none": ("取り違えはありませんでした。", "Nothing was mixed up."),
    "confusion_large": (
        "区分が{n}個あるため、表は省きました。",
        "The table is left out because there are {n} classes.",
    ),
    "truth_axis": ("正しい区分", "True class"),
    "predicted_axis": ("モデルの答え", "Answer"),
    "mistakes": ("自信を持って間違えた例", "Confident mistakes"),
    "mistakes_lead": (
        "モデルが強く確信しながら間違えた行です。元のラベルのほうが誤っていることもあるので、"
        "まずここを見直すと効果的です。",
        "Rows that the model got wrong while being sure. Sometimes the label is what is wrong: check these first.",
    ),
    "mistakes_lead_image": (
        "モデルが強く確信しながら間違えた画像です。元の区分のほうが誤っていることもあるので、"
        "まずここを見直すと効果的です。",
        "Pictures that the model got wrong while being sure. Sometimes the class given is what is wrong: check these first.",
    ),
    "row": ("行", "Row"),
    "text": ("本文", "Text"),
    "truth": ("正しい区分", "True class"),
    "predicted": ("答え", "Answer"),
    "confidence": ("確信度", "Confidence"),
    "no_mistakes": ("テスト用データに間違いはありませんでした。", "There were no mistakes on the test rows."),
    "curve": ("データを増やすとどうなるか", "What would more data bring?"),
    "curve_lead": (
        "学習データの件数を変えたときの品質です（検証用データで計測）。",
        "Quality when training on fewer rows (measured on the validation rows).",
    ),
    "curve_x": ("学習データの件数", "Training rows"),
    "curve_alt": ("学習曲線。{summary}", "Learning curve. {summary}"),
    "forecast": (
        "学習データを現在の{now}から{twice}に増やすと、macro-F1は{a}から{b}になると予測されます（95%区間 "
        "{interval}）。",
        "With {twice} instead of {now}, macro-F1 is predicted to go from {a} to {b} (95% interval {interval}).",
    ),
    "forecast_label": ("予測", "forecast"),
    "no_curve": (
        "学習データの件数を変えた計測が足りないため、予測はありません。",
        "Too few sizes of training data were measured for a forecast.",
    ),
    "data": ("データについて分かったこと", "What was found in the data"),
    "data_facts": (
        "全{rows}件のうち{usable}件を使いました。言語は{language}、本文の長さは中央値{p50}文字・95%点{p95}文字です。",
        "{usable} of {rows} rows are usable. Language: {language}. Text length: median {p50} characters, p95 {p95}.",
    ),
    "data_facts_image": (
        "全{rows}枚のうち{usable}枚を使いました。短い辺は中央値{p50}ピクセル・95%点{p95}ピクセル、区分の名前は{language}です。",
        "{usable} of {rows} pictures are usable. Shorter side: median {p50} pixels, p95 {p95}. Class names: {language}.",
    ),
    "language_ja": ("日本語", "Japanese"),
    "language_en": ("英語", "English"),
    "language_mixed": ("日本語と英語の混在", "Japanese and English mixed"),
    "language_other": ("日本語・英語以外", "neither Japanese nor English"),
    "info": ("情報", "note"),
    "warning": ("注意", "warning"),
    "no_findings": ("特に問題は見つかりませんでした。", "Nothing remarkable was found."),
    "method": ("計測のしかた", "How it was measured"),
    "method_splits": (
        "学習用{train}件、検証用{validation}件、テスト用{test}件に分けました。候補の絞り込みには検証用だけを使い、"
        "表と図の値はテスト用で計測しています。",
        "Rows were split into {train} for training, {validation} for validation and {test} for testing. "
        "Candidates were "
        "narrowed down on the validation rows alone; the tables and plots show the test rows.",
    ),
    "method_groups": (
        "同じ文やよく似た文（{groups}組）は必ず同じ側に入れ、答えの漏れを防いでいます。",
        "Identical and similar texts ({groups} groups) were kept on one side, so that no answer leaks.",
    ),
    "method_groups_image": (
        "同じ画像やよく似た画像（{groups}組）は必ず同じ側に入れ、答えの漏れを防いでいます。",
        "Identical and nearly identical pictures ({groups} groups) were kept on one side, so that no answer leaks.",
    ),
    "method_f1": (
        "macro-F1は区分ごとのF1の単純平均で、件数の少ない区分も同じ重みで数えます。1が満点です。",
        "Macro-F1 is the plain mean of the F1 of all classes, so small classes count as much as large ones. 1 is "
        "perfect.",
    ),
    "method_statistics": (
        "95%区間はテスト用データを繰り返し選び直すブートストラップ法で求めました。候補間の差はMcNemarの正確検定で調べ、"
        "比較の回数に応じてHolm法で補正しています。テスト用の値で候補を選ぶため、"
        "推奨候補の値はわずかに高めに出ることがあります。",
        "95% intervals come from bootstrap resampling of the test rows. Differences were tested with McNemar's exact "
        "test, corrected for the number of comparisons (Holm). As the choice looks at the test rows, the recommended "
        "candidate's value can be slightly optimistic.",
    ),
    "method_speed": (
        "応答時間は1件ずつ処理したときの値です。メモリ使用量は、新しく起動したプロセスでモデルを読み込み、"
        "予測したときの最大値です。",
        "Latency is for one request at a time. Memory is the peak of a fresh process that loads the model and "
        "predicts.",
    ),
    "method_cost": (
        "費用は、このマシンを1時間{yen}円で借り、1件ずつ処理し続けた場合の計算です（1ドル＝{rate}円）。",
        "Cost assumes this machine at ¥{yen} per hour, busy with one request after another ($1 = ¥{rate}).",
    ),
    "method_time": (
        "全体の所要時間は{time}、乱数の種は{seed}です。",
        "The whole run took {time}; the random seed is {seed}.",
    ),
    "missing": ("比較に含まれていないもの", "What is not in the race"),
    "missing_japanese": (
        "日本語を十分に学習したエンコーダーで、pipだけで入手できるものはまだありません。"
        "候補の基盤モデルは主に英語で学習されています。"
        "手元に日本語のモデルがあれば、そのフォルダーを --models に渡すと比較に加えられます。",
        "No encoder trained well on Japanese can be had through pip alone yet; the models tried here learned "
        "mostly from "
        "English. If you have a Japanese model, pass its folder to --models and it joins the race.",
    ),
    "missing_vision": (
        "画像を読むほかのモデルは、カタログの名前（kiban models --reads image で一覧）か手元のフォルダーを --models に渡すと"
        "比較に加えられます。",
        "Other models that see join the race by --models: names of the catalogue (kiban models --reads image lists them) "
        "or folders of your own.",
    ),
    "missing_hosted": (
        "外部のAPIで提供されるモデルは試していません。費用と品質はこのマシンで動かした場合のものです。",
        "Models behind hosted APIs were not tried. Cost and quality are those of running on this machine.",
    ),
    "missing_strategies": (
        "このデータと候補モデルでは、次の方法は試していません：{names}。",
        "These methods were not tried with these data and models: {names}.",
    ),
    "repeat": ("もう一度実行するには", "To repeat this run"),
    "card": (
        "推奨モデルは final/ にあり、使い方と制限はモデルカード（final/README.md）に書かれています。",
        "The recommended model is in final/; its model card (final/README.md) says how to use it and where its "
        "limits are.",
    ),
    "environment": ("実行環境", "Environment"),
    "env_kiban": ("kiban", "kiban"),
    "env_python": ("Python", "Python"),
    "env_torch": ("PyTorch", "PyTorch"),
    "env_system": ("OS", "System"),
    "env_processor": ("CPU", "Processor"),
    "env_cores": ("コア数", "Cores"),
    "env_threads": ("スレッド数", "Threads"),
    "env_memory_bytes": ("メモリ", "Memory"),
    "footer": ("kiban {version} が {created} に作成", "Made by kiban {version} on {created}"),
}  # fmt: skip

# Reasons that the race writes in its own short form -> a sentence.
REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"macro_f1=(?P<f1>\S+) best=(?P<best>\S+) rung=(?P<rung>\d+) rows=(?P<rows>\d+)",
        "第{rung}段階（学習{rows}件）でmacro-F1が{f1}にとどまり、最良の{best}に及びませんでした",
        "round {rung} ({rows} training rows): macro-F1 {f1}, while the best had {best}",
    ),
    (
        r"licence (?P<licence>.+) is not known to allow commercial use",
        "ライセンス（{licence}）が商用利用を認めているか確認できません",
        "licence {licence} is not known to allow commercial use",
    ),
    (
        r"needs about (?P<need>\d+) s for a first try, too much of the time granted",
        "最初の試行に約{need}秒かかり、与えられた時間では足りません（--time を延ばすと加わります）",
        "needs about {need} s for a first try, too much of the time granted (a longer --time lets it in)",
    ),
    (
        r"time: too short to try this one .*",
        "与えられた時間では試せませんでした（--time を延ばすと加わります）",
        "the time granted was too short to try it (a longer --time lets it in)",
    ),
    (
        r"needs about (?P<need>.+), more than the (?P<limit>.+) allowed",
        "メモリが約{need}必要で、上限の{limit}を超えます",
        "needs about {need}, more than the {limit} allowed",
    ),
)


def say(key: str, lang: Lang, *, images: bool = False, **values: object) -> str:
    """The sentence of this key. images: the one about pictures, where there is one."""
    if images:
        key = f"{key}_image" if f"{key}_image" in TEXT else key
    return TEXT[key][0 if lang == "ja" else 1].format(**values)


def reason(text: str, lang: Lang) -> str:
    """Why a candidate was stopped or left out; a message that is not known is shown as it is."""
    for pattern, ja, en in REASONS:
        if found := re.fullmatch(pattern, text):
            return (ja if lang == "ja" else en).format(**found.groupdict())
    return text
