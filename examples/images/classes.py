"""Unicode's groups and subgroups of emoji in Japanese: class labels for a classifier of pictures."""

from __future__ import annotations

GROUPS = {
    "Smileys & Emotion": "顔と感情", "People & Body": "人と体", "Animals & Nature": "動物と自然",
    "Food & Drink": "食べ物と飲み物", "Travel & Places": "旅行と場所", "Activities": "活動", "Objects": "物",
    "Symbols": "記号", "Flags": "旗",
}  # fmt: skip

SUBGROUPS = {
    "face-smiling": "笑顔", "face-affection": "愛情のある顔", "face-tongue": "舌を出した顔", "face-hand": "手を添えた顔",
    "face-neutral-skeptical": "無表情・疑いの顔", "face-sleepy": "眠そうな顔", "face-unwell": "具合の悪い顔",
    "face-hat": "帽子をかぶった顔", "face-glasses": "眼鏡をかけた顔", "face-concerned": "心配・悲しみの顔",
    "face-negative": "怒り・悪意の顔", "face-costume": "仮装の顔", "cat-face": "猫の顔", "monkey-face": "猿の顔",
    "heart": "ハート", "emotion": "感情の記号",
    "hand-fingers-open": "開いた手", "hand-fingers-partial": "指の一部を立てた手", "hand-single-finger": "一本指の手",
    "hand-fingers-closed": "握った手", "hands": "両手", "hand-prop": "物を持つ手", "body-parts": "体の部分",
    "person": "人", "person-gesture": "身ぶりをする人", "person-role": "職業・役割の人", "person-fantasy": "空想の人物",
    "person-activity": "活動する人", "person-sport": "スポーツをする人", "person-resting": "休む人",
    "family": "家族とカップル", "person-symbol": "人の記号",
    "animal-mammal": "哺乳類", "animal-bird": "鳥", "animal-amphibian": "両生類", "animal-reptile": "爬虫類",
    "animal-marine": "海の生き物", "animal-bug": "虫", "plant-flower": "花", "plant-other": "植物",
    "food-fruit": "果物", "food-vegetable": "野菜", "food-prepared": "料理", "food-asian": "アジアの料理",
    "food-sweet": "甘い物", "drink": "飲み物", "dishware": "食器",
    "place-map": "地図", "place-geographic": "地形", "place-building": "建物", "place-religious": "宗教の建物",
    "place-other": "その他の場所", "transport-ground": "陸の乗り物", "transport-water": "水の乗り物",
    "transport-air": "空の乗り物", "hotel": "ホテル", "time": "時間", "sky & weather": "空と天気",
    "event": "行事", "award-medal": "賞とメダル", "sport": "スポーツ", "game": "ゲーム", "arts & crafts": "芸術と手芸",
    "clothing": "衣類", "sound": "音", "music": "音楽", "musical-instrument": "楽器", "phone": "電話",
    "computer": "コンピューター", "light & video": "光と映像", "book-paper": "本と紙", "money": "お金", "mail": "郵便",
    "writing": "筆記具", "office": "事務用品", "lock": "鍵", "tool": "道具", "science": "科学", "medical": "医療",
    "household": "家庭用品", "other-object": "その他の物",
    "transport-sign": "交通・案内標識", "warning": "警告", "arrow": "矢印", "religion": "宗教の記号", "zodiac": "星座",
    "av-symbol": "再生・操作の記号", "gender": "性別の記号", "math": "数学の記号", "punctuation": "句読点",
    "currency": "通貨の記号", "other-symbol": "その他の記号", "keycap": "キーの数字", "alphanum": "文字のマーク",
    "geometric": "図形", "flag": "旗",
}  # fmt: skip
