"""Words too frequent to search for, in five languages, as the index folds them: small letters without accents."""

from __future__ import annotations

_LISTS = {
    "en": "a about after all also am an and any are as at be because been but by can could did do does for from get got had has "
    "have he her here him his how i if in into is it its just let like me more my no not now of on one or our out please re "
    "say she should so some tell than thank thanks that the their them then there these they this to too up us very was we "
    "were what when which who will with would you your mail email write reply ask",
    "de": "aber als am an auch auf aus bei bin bis bist da das dass dem den der des die dies diese dir doch du ein eine einen "
    "einer er es fur haben hat hatte ich ihm ihn ihr im in ist ja kann mal man mich mir mit nach nicht noch nur ob oder schon "
    "sein sich sie sind so um und uns von vom war was wenn wer wie wir wird zu zum zur bitte danke",
    "fr": "au aux avec ce ces cette dans de des du elle en est et etre il ils je la le les leur lui ma mais me mes moi mon ne nos "
    "notre nous on ou par pas plus pour qu que qui sa se ses si son sur ta te tes toi ton tu un une vos votre vous merci",
    "es": "al como con cual de del donde el ella en entre es esta este esto fue ha hay la las le les lo los mas me mi muy no nos o "
    "para pero por que se si sin sobre su sus te tu un una uno y ya yo gracias",
    "it": "ai al alla anche che chi ci come con da dal del della di e ed era gli ha ho i il in io la le lei li lo loro lui ma mi "
    "mio ne nel nella no noi non o per piu quale quando questa questo se si sono su sua suo ti tu un una uno vi voi grazie",
}
STOP_WORDS = frozenset(" ".join(_LISTS.values()).split())
