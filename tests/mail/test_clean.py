"""The author's words: each case a mail's text, the words that are the author's, and what must be among the quoted."""

from __future__ import annotations

import pytest

from panza.mail.clean import clean

# Attribution line above a quote without `>`, as many programs send it, and the same above one with `>`.
ATTRIBUTIONS = {
    "en": "On Tue, 3 May 2022 at 10:00, Anna Lee <anna@example.org> wrote:",
    "en_us": "On 5/3/2022 10:00 AM, Anna Lee wrote:",
    "en_wrapped": "On Tue, May 3, 2022 at 10:00 AM Anna Maria Lee-Longname\n<anna.maria@example.org> wrote:",
    "en_name_first": "Anna Lee <anna@example.org> wrote:",
    "en_dated_first": "2022-05-03 10:00 GMT+02:00 Anna Lee <anna@example.org>\nwrote:",
    "de": "Am 03.05.2022 um 10:00 schrieb Anna Lee:",
    "de_gmail": "Am Di., 3. Mai 2022 um 10:00 Uhr schrieb Anna Lee <anna@example.org>:",
    "fr": "Le mar. 3 mai 2022 à 10:00, Anna Lee <anna@example.org> a écrit :",
    "fr_wrapped": "Le 3 mai 2022 à 10h00, Anna Lee\n<anna@example.org> a écrit :",
    "es": "El mar, 3 may 2022 a las 10:00, Anna Lee (<anna@example.org>) escribió:",
    "it": "Il giorno mar 3 mag 2022 alle ore 10:00 Anna Lee <anna@example.org> ha scritto:",
    "it_thunderbird": "Il 03/05/2022 10:00, Anna Lee ha scritto:",
    "pt": "Em ter., 3 de mai. de 2022 às 10:00, Anna Lee <anna@example.org> escreveu:",
    "nl": "Op di 3 mei 2022 om 10:00 schreef Anna Lee <anna@example.org>:",
    "sv": "Den tis 3 maj 2022 kl 10:00 skrev Anna Lee <anna@example.org>:",
    "pl": "W dniu 03.05.2022 o 10:00, Anna Lee pisze:",
}
HEADERS = {
    "outlook_en": "-----Original Message-----\nFrom: Anna Lee\nSent: Tuesday, May 3, 2022 10:00 AM\nTo: Ben\nSubject: Plan",
    "outlook_en_tabs": " -----Original Message-----\nFrom: \tLee, Anna  \nSent:\tTuesday, May 3, 2022 10:00\nTo:\tOtt, Ben\nSubject:\tRE: Plan",
    "outlook_en_bare": "From: Anna Lee <anna@example.org>\nSent: Tuesday, May 3, 2022 10:00 AM\nTo: Ben\nCc: Carl\nSubject: Plan",
    "outlook_rule": "________________________________\nFrom: Anna Lee\nSent: Tuesday, May 3, 2022 10:00 AM\nTo: Ben\nSubject: Plan",
    "outlook_stars": "*From:* Anna Lee\n*Sent:* Tuesday, May 3, 2022 10:00 AM\n*To:* Ben\n*Subject:* Plan",
    "outlook_de": "Von: Anna Lee\nGesendet: Dienstag, 3. Mai 2022 10:00\nAn: Ben Ott\nBetreff: Plan",
    "outlook_de_mark": "-----Ursprüngliche Nachricht-----\nVon: Anna Lee\nGesendet: Dienstag, 3. Mai 2022 10:00\nAn: Ben\nBetreff: Plan",
    "outlook_fr": "De : Anna Lee\nEnvoyé : mardi 3 mai 2022 10:00\nÀ : Ben Ott\nObjet : Plan",
    "outlook_fr_mark": "-----Message d'origine-----\nDe : Anna Lee\nEnvoyé : mardi 3 mai 2022 10:00\nÀ : Ben\nObjet : Plan",
    "outlook_es": "De: Anna Lee\nEnviado el: martes, 3 de mayo de 2022 10:00\nPara: Ben Ott\nAsunto: Plan",
    "outlook_it": "Da: Anna Lee\nInviato: martedì 3 maggio 2022 10:00\nA: Ben Ott\nOggetto: Plan",
    "gmail_forward": "---------- Forwarded message ---------\nFrom: Anna Lee <anna@example.org>\nDate: Tue, 3 May 2022\nSubject: Plan\nTo: Ben",
    "apple_forward": "Begin forwarded message:\n\nFrom: Anna Lee <anna@example.org>\nSubject: Plan\nDate: 3 May 2022 at 10:00\nTo: Ben",
    "thunderbird_forward_de": "-------- Weitergeleitete Nachricht --------\nBetreff: \tPlan\nDatum: \tTue, 3 May 2022\nVon: \tAnna Lee\nAn: \tBen",
    "lotus_name_above_date": "Anna Lee\n05/03/2001 09:57 AM\nTo:\tBen Ott/SALES/Example@EXAMPLE\ncc:\t \n\nSubject:\tPlan",
    "lotus_name_and_date": '"Lee, Anna" <anna@example.org> on 05/03/2001 09:18:26 AM\nTo:\t"\'ben@example.net\'" <ben@example.net>\ncc:\t \n\nSubject:\tPlan',
    "lotus_respond_to": "<anna@example.org> on 05/03/2001 09:18:26 AM\nPlease respond to <anna@example.org>\nTo: ben@example.net\ncc:  \nSubject: Plan",
    "lotus_forward": "---------------------- Forwarded by Ben Ott/SALES/Example on 05/03/2001 09:58 AM ---------------------------\n\n\nAnna Lee\n05/03/2001 09:57 AM\nTo:\tBen\ncc:\t\n\nSubject:\tPlan",
    "lotus_forward_wrapped": "---------------------- Forwarded by Ben Ott/SALES/Example on 05/03/2001 \n09:58 AM ---------------------------\n\nAnna Lee on 05/03/2001 09:57:11 AM\nTo: Ben\ncc:  \n\nSubject: Plan",
    "lotus_from_line": "From:\tAnna Lee/EXAMPLE@exampleXgate on 05/03/2001 12:06 PM CST\nTo:\tBen Ott/SALES/Example@EXAMPLE\ncc:\t \n\nSubject:\tPlan",
    "groupwise": '>>> "Anna Lee" <anna@example.org> 05/03/01 09:57AM >>>',
    "many_recipients": "From: Anna Lee\nSent: Tuesday, May 3, 2022\nTo: "
    + ";\n\t".join(f"Person {i}" for i in range(30))
    + "\nSubject: Plan",
}
OWN = "Yes, Thursday is fine.\n\nBen"
THEIRS = "Is Thursday fine for the review?\n\nAnna"


@pytest.mark.parametrize("header", [*ATTRIBUTIONS.values(), *HEADERS.values()], ids=[*ATTRIBUTIONS, *HEADERS])
def test_everything_under_a_quote_header_is_quoted(header: str) -> None:
    words = clean(f"{OWN}\n\n{header}\n\n{THEIRS}\n", "Ben Ott")
    assert words.own == OWN
    assert words.quoted.endswith(THEIRS)


@pytest.mark.parametrize("header", [*ATTRIBUTIONS.values(), *HEADERS.values()], ids=[*ATTRIBUTIONS, *HEADERS])
def test_a_header_directly_under_the_words_takes_none_of_them(header: str) -> None:
    assert clean(f"See you at 10.\n{header}\n{THEIRS}\n").own == "See you at 10."


@pytest.mark.parametrize("header", ATTRIBUTIONS.values(), ids=ATTRIBUTIONS)
def test_answers_between_the_quotes_stay(header: str) -> None:
    text = f"{header}\n> Is Thursday fine?\n\nYes.\n\n> And the room?\n> Upstairs?\n\nRoom 4.\n\nBen\n"
    words = clean(text, "Ben Ott")
    assert words.own == "Yes.\n\nRoom 4.\n\nBen"
    assert "Is Thursday fine?\nAnd the room?\nUpstairs?" in words.quoted


# What looks like a quote header and is the author's own.
KEPT = {
    "only": "Only one comment on the paper that Carl wrote.\n\nOn page 3 the number is wrong.\n\nAnna",
    "on_second_thoughts": "On second thoughts I wrote to her.\nShe said: fine.\n\nAnna",
    "on_with_colon": "On the whole I like what she wrote:\nit is short.\n\nAnna",
    "on_monday": "On Monday we meet at 10:00 in room 4. Bring the draft that Ben wrote.\n\nAnna",
    "from_monday": "From: Monday on we are in Berlin.\nThat is all.\n\nAnna",
    "from_to": "From: Vienna\nTo: Berlin\nwhich train do we take?\n\nAnna",
    "am_anfang": "Am Anfang war das Wort.\nAm 3. Mai 2022 bin ich in Köln.\n\nAnna",
    "le_directeur": "Le directeur a écrit une lettre. Le 3 mai, il arrive.\n\nAnna",
    "el_informe": "El informe que escribió Ana está listo.\n\nAnna",
    "il_libro": "Il libro che ha scritto è bello.\n\nAnna",
    "date_line": "The dates:\n\n03/05/2001 09:57 AM first call\n04/05/2001 10:00 AM second call\n\nAnna",
    "agenda": "Subject: the budget.\nThe rest can wait.\n\nAnna",
    "original_message": "The original message was lost, please send it again.\n\nAnna",
    "dashes": "Two things -- both small.\n\n- the budget\n- the room\n\nAnna",
    "sent_from": "The parcel was sent from my office on Monday.\n\nAnna",
    "sent_from_short": "Sent from my sister\nwith love.",
    "thank_you_in_text": "Thanks for the draft. I read it on the train.\n\nAnna",
    "links": "Please read these:\n\n1. https://example.org/one\n2. https://example.org/two\n\nThanks,\nAnna",
    "nested_list": "Plan:\n- one\n  - one and a half\n- two\n\nAnna",
    "phone_is_the_answer": "Her numbers:\n\nAnna 713-555-0100\nCarl 713-555-0101",
    "phone_in_a_sentence": "Call me at 713-555-0100 if it rains.\n\nAnna",
    "confidential_word": "The plan is confidential, so do not forward it.\n\nAnna",
    "sign_off_and_name": "See you then.\n\nBest regards,\nAnna",
    "asterisks": "* one\n* two\n\nAnna",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_own_words_are_never_cut(text: str) -> None:
    assert clean(text + "\n", "Anna Lee") == type(clean(""))(text, "")


# Below the author's words: (end of the mail, what stays of it).
ENDS = {
    "delimiter": ("Thanks,\nAnna\n\n-- \nAnna Lee\nHead of Tables", "Thanks,\nAnna"),
    "delimiter_without_space": ("Anna\n--\nAnna Lee, Example Ltd.", "Anna"),
    "block_en": (
        "Thanks,\nAnna\n\nAnna Lee\nDirector, Tables\nExample Corp.\n(713) 555-0100\nanna@example.org",
        "Thanks,\nAnna",
    ),
    "block_without_gap": (
        "Best regards,\nAnna Lee\nSenior Manager\nPhone: 713/555-0100  Fax: 713/555-0101",
        "Best regards,\nAnna Lee",
    ),
    "block_address": ("Anna Lee\n1400 Long Street\nHouston, TX 77002\nwww.example.org", "Anna Lee"),
    "phone_only": ("Anna\n713-555-0100", "Anna"),
    "block_de": (
        "Mit freundlichen Grüßen\nAnna Lee\n\nLeiterin Einkauf\nTische GmbH\nHauptstraße 5\n10115 Berlin\nTel. +49 30 1234567",
        "Mit freundlichen Grüßen\nAnna Lee",
    ),
    "block_fr": (
        "Cordialement,\nAnna Lee\nDirectrice\n12, rue Longue\nTél. : +33 1 23 45 67 89",
        "Cordialement,\nAnna Lee",
    ),
    "block_es": ("Un saludo,\nAnna Lee\nGerente de Ventas\nTeléfono: +34 91 123 45 67", "Un saludo,\nAnna Lee"),
    "block_it": (
        "Cordiali saluti\nAnna Lee\nUfficio Acquisti\nVia Lunga 5\nTel. +39 06 1234567",
        "Cordiali saluti\nAnna Lee",
    ),
    "iphone": ("Anna\n\nSent from my iPhone", "Anna"),
    "blackberry": ("Anna\n\nSent via BlackBerry from T-Mobile", "Anna"),
    "outlook_app": ("Anna\n\nGet Outlook for iOS (https://aka.ms/o0ukef)", "Anna"),
    "iphone_de": ("Anna\n\nVon meinem iPhone gesendet", "Anna"),
    "iphone_fr": ("Anna\n\nEnvoyé de mon iPhone", "Anna"),
    "iphone_es": ("Anna\n\nEnviado desde mi iPhone", "Anna"),
    "iphone_it": ("Anna\n\nInviato da iPhone", "Anna"),
    "list_footer": (
        "Anna\n\n_______________________________________________\nTalk mailing list\nTalk@lists.example.org",
        "Anna",
    ),
    "google_groups": ("Anna\n\n-- \nYou received this message because you are subscribed to the group.", "Anna"),
    "unsubscribe": ("Anna\n\nTo unsubscribe, send a mail to leave@example.org.", "Anna"),
    "hotmail": ("Anna\n______________________________\nGet Your Private, Free Email at http://www.example.com", "Anna"),
    "yahoo": ("Anna\n\n__________________________________\nDo You Yahoo!?\nTalk to your friends", "Anna"),
    "disclaimer_en": (
        "Anna\n\n**********************\nThis e-mail is the property of Example Corp. and may contain confidential matter.\n"
        "If you are not the intended recipient, delete it.\n**********************",
        "Anna",
    ),
    "disclaimer_wrapped": (
        "Anna\n\nThis message and any attachment\nto it are strictly\nconfidential. Thank you.",
        "Anna",
    ),
    "disclaimer_de": ("Anna\n\nDiese E-Mail enthält vertrauliche Informationen. Bitte löschen.", "Anna"),
    "disclaimer_fr": ("Anna\n\nCe message et ses pièces jointes sont confidentiels.", "Anna"),
    "disclaimer_es": ("Anna\n\nEste mensaje contiene información confidencial.", "Anna"),
    "disclaimer_it": ("Anna\n\nQuesto messaggio contiene informazioni riservate.", "Anna"),
    "file_marks": ("Anna\n\n << File: Plan final.doc >>  << File: b.xls >> ", "Anna"),
    "attachment_names": ("Anna\n\n(See attached file: plan.doc)\n - plan.doc\n - chart.gif", "Anna"),
}


@pytest.mark.parametrize(("end", "kept"), ENDS.values(), ids=ENDS)
def test_what_stands_under_a_letter_goes_and_the_closing_stays(end: str, kept: str) -> None:
    assert (
        clean(f"The plan is ready. I will send it.\n\n{end}\n", "Anna Lee").own
        == f"The plan is ready. I will send it.\n\n{kept}"
    )


WRAPPED = {
    "prose": (
        "Thank you for the plan, which I have read on the train to Vienna this\nmorning. It is good, but the third part "
        "should be shorter than it is\nnow.\n\nAnna",
        "Thank you for the plan, which I have read on the train to Vienna this morning. It is good, but the third part "
        "should be shorter than it is now.\n\nAnna",
    ),
    "short_lines_stay": ("Roses are red,\nviolets are blue.\n\nAnna", "Roses are red,\nviolets are blue.\n\nAnna"),
    "trailing_spaces": (
        "i have been told that the review of the third part moves to thursday of \nnext week.  is that so?",
        "i have been told that the review of the third part moves to thursday of next week.  is that so?",
    ),
    "list": (
        "We need three things for the meeting on Thursday, as I told you before:\n- a table that is large enough for all "
        "of the people who\n  said that they come\n- chairs\n\nAnna",
        "We need three things for the meeting on Thursday, as I told you before:\n- a table that is large enough for all "
        "of the people who said that they come\n- chairs\n\nAnna",
    ),
    "closing_stays": (
        "I have read the plan and I am sure that all of us will like it, yes, all\nThanks,\nAnna",
        "I have read the plan and I am sure that all of us will like it, yes, all\nThanks,\nAnna",
    ),
    "name_stays": (
        "I have put the file into the folder Example/Markets/Fundamentals/Paper\nAnna",
        "I have put the file into the folder Example/Markets/Fundamentals/Paper\nAnna",
    ),
    "initials_stay": (
        "I have put the file into the folder Example/Markets/Fundamentals/Paper\nal",
        "I have put the file into the folder Example/Markets/Fundamentals/Paper\nal",
    ),
    "last_word_was_wrapped": (
        "i have put the file into the folder of markets and of fundamentals for\nus",
        "i have put the file into the folder of markets and of fundamentals for us",
    ),
    "drawn_line_stays": (
        "I have put the file into the folder Example/Markets/Fundamentals/Paper\n__________\nThe next part.",
        "I have put the file into the folder Example/Markets/Fundamentals/Paper\n__________\nThe next part.",
    ),
    "not_wrapped": ("A line of its own that is rather long, " * 4 + "\nAnd then the next one.", None),
    "table": (
        "The numbers of the year, by month, in thousands, are as follows here:\nJanuary      12      14      Berlin and Vienna\n"
        "February     13      15      Berlin and Vienna and Rome",
        "The numbers of the year, by month, in thousands, are as follows here:\nJanuary      12      14      Berlin and Vienna\n"
        "February     13      15      Berlin and Vienna and Rome",
    ),
}


@pytest.mark.parametrize(("text", "want"), WRAPPED.values(), ids=WRAPPED)
def test_hard_wraps_are_undone_and_layout_stays(text: str, want: str | None) -> None:
    assert clean(text, "Anna Lee").own == (want or "\n".join(line.rstrip() for line in text.split("\n")))


def test_the_rest_of_a_badly_wrapped_quote_is_no_answer() -> None:
    text = "> this is a long line of the quoted mail that was wrapped by some\nprogram\n> on the way\n\nMine.\n"
    assert clean(text).own == "Mine."


def test_a_short_answer_under_a_quoted_line_stays() -> None:
    assert clean("> can you come?\nyes\n> when?\n5pm\n").own == "yes\n5pm"


def test_nothing_is_no_error() -> None:
    for text in ("", "\n\n", "> only quoted", "-- ", "On", "From:", ">", "_" * 40):
        assert clean(text).own in ("", text.strip())


@pytest.mark.parametrize(
    "piece",
    [
        "On 2022 ",
        "-" * 50,
        "_____\n",
        "a:" * 20 + "\n",
        "> " * 50 + "\n",
        "This message ",
        "Sent from my ",
        "<<File: ",
        "To: x\n",
    ],
)
def test_words_above_a_flood_are_found(piece: str) -> None:
    """Would not end in a lifetime if a pattern took more than linear time."""
    assert clean(f"Mine.\n\n{piece * 20_000}").own.startswith("Mine.")
