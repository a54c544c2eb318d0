"""Whether a text is in a language, by its letters and by the commonest words of the languages that share them.

Meant for whole answers in one of a few languages, not for single words. The letters must mostly be of the language's
script. Where several languages here share it, none of the others may have more of its common words in the text, and the
language itself must have some; English alone may have none, so that ``YES.`` is English. No model, no chance: the same
text is always told the same way.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "ar": "ARABIC", "bg": "CYRILLIC", "bn": "BENGALI", "de": "LATIN", "en": "LATIN", "es": "LATIN", "fa": "ARABIC",
    "fi": "LATIN", "fr": "LATIN", "gu": "GUJARATI", "hi": "DEVANAGARI", "it": "LATIN", "kn": "KANNADA",
    "ko": "HANGUL", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "pa": "GURMUKHI", "pt": "LATIN", "ru": "CYRILLIC",
    "sw": "LATIN", "ta": "TAMIL", "te": "TELUGU", "th": "THAI", "uk": "CYRILLIC", "ur": "ARABIC", "vi": "LATIN",
}  # fmt: skip

_COMMON = {
    "ar": "في من على إلى أن هذا هذه التي الذي كان ما لا عن مع هو هي كل أو ثم لم قد بعد قبل يا كما بين حتى عند ذلك إن",
    "bg": "на и да се от за е не ще в с по са като това как но или му той тя аз ти съм което които че има може още",
    "de": "der die und das ist in zu den nicht von mit sich des auf für ein eine dem als auch es an werden aus er hat "
          "dass sie nach wird bei ich war noch wie einer um am sind so zum haben nur oder aber vor zur bis wir kann",
    "en": "the of and to in is you that it for was on are as with his they i at be this have from or one had by but "
          "not what all were we when your can said there an each which she do how their if will my has he me our",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le ya o este sí "
          "porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos",
    "fa": "در به از که این را با است برای آن یک خود تا کرد بر هم نیز های شد می ما شما او من آنها باید بود هر اگر یا چه",
    "fi": "ja on ei se että hän oli en mutta olen minä kun niin tämä kuin joka ovat sen mitä sinä myös tai voi jos "
          "vain hyvin ole ollut me te he kaikki nyt sitten siitä oma kanssa mukaan",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec ils mais "
          "comme ou si leur y dont elle deux ces je nous vous aux cette son sa ses été être",
    "hi": "के का में की है यह और से हैं को पर इस होता कि जो कर मे गया करने किया लिये अपने ने बनी नहीं तो ही या एवं दिया "
          "था हो भी वह मैं हम आप एक",
    "it": "di che e la il un a per è in una mi sono ho non ma lo ha le si i con da come io questo qui hai sei del "
          "della nel gli alla dei anche più se al ci sua suo loro tutto essere o delle",
    "mr": "आहे आणि या तो ते होते आहेत हे एक च नाही मी तुम्ही आम्ही त्या हा ही की साठी मध्ये पण तर काही केले होता त्यांच्या "
          "आपल्या करून असे म्हणून",
    "ne": "छ र को मा हो पनि यो लागि गर्न भने तथा छन् एक म तपाईं हामी थियो गरेको भएको हुन्छ गर्ने त्यो अनि भयो वा हुन् गर्दै "
          "सबै तर",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
          "sua ou ser quando muito há nos já está eu também só pelo pela até isso ela você são",
    "ru": "и в не на я быть он с что а по это она этот к но они мы весь который из у который то за свой что ее так вы "
          "от как для или бы его было мне уже есть если их мой",
    "sw": "ya na wa kwa ni katika la za kuwa hii huu hiyo hayo yake wake cha au kama lakini pia vya mimi wewe yeye "
          "sisi watu sana kila hivyo ili bila juu baada kutoka ambayo hakuna si",
    "uk": "і в не на я що з він це а та до як за ти у але ми вони вона її його був для або від по є був якщо вже також",
    "ur": "کے میں کی ہے اور سے کا کو اس کہ ہیں پر نے ایک یہ کر بھی تھا نہیں ہو کیا وہ جو ان تو ہی تھی اپنے لیے آپ ہم",
    "vi": "là và của có không cho được trong một với các những người này đã để khi như tôi bạn từ ra đến về nhiều thì "
          "cũng vào nhưng hay sẽ phải rất năm đó làm lại",
}  # fmt: skip
_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f\u0900-\u0dff\u200c])*")  # with vowel signs of Indian scripts

LANGUAGES = frozenset(_SCRIPTS)
"""Codes that `is_in` knows."""


def is_in(language: str, text: str) -> bool:
    """Return whether a text is in a language, which must be one of `LANGUAGES`.

    >>> is_in("de", "Das ist nicht der Rede wert."), is_in("de", "It is not worth the talk."), is_in("en", "YES.")
    (True, False, True)
    """
    script = _SCRIPTS[language]
    letters = Counter(map(_script, filter(str.isalpha, text)))
    if 2 * letters[script] <= letters.total():
        return False
    others = [other for other, found in _SCRIPTS.items() if found == script and other != language]
    if not others:
        return True
    words = Counter(word.lower() for word in _WORD.findall(text))
    mine, *theirs = (sum(words[word] for word in _WORDS[each]) for each in (language, *others))
    return mine >= max(theirs) and (mine > 0 or language == "en")


def _script(letter: str) -> str:
    """Return the script of a letter, which is how its name begins."""
    return unicodedata.name(letter, "").partition(" ")[0]
