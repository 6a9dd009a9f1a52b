"""Greetings and sign-offs, as people write them."""

import pytest

from panza.letter import greeting, greeting_form, sign_off

OPENINGS = [  # text, greeting as written, form
    ("Hi Anna,\nthe report", "Hi Anna,", "Hi NAME,"),
    ("hi bob, see you", "hi bob,", "hi NAME,"),
    ("Hello Mr. Uutella,\n\nthe report", "Hello Mr. Uutella,", "Hello NAME,"),
    ("Dear Dr. Lay--\nthe report", "Dear Dr. Lay--", "Dear NAME--"),
    ("Bob, please follow up.", "Bob,", "NAME,"),
    ("Vik,\nthe report", "Vik,", "NAME,"),
    ("Mike and Anna,\nthe report", "Mike and Anna,", "NAME,"),
    ("All,\nthe report", "All,", "All,"),
    ("Hi all,\nthe report", "Hi all,", "Hi all,"),
    ("Hello,\nthe report", "Hello,", "Hello,"),
    ("hey do you want to go", "hey", "hey"),
    ("Good morning Anna, here it is", "Good morning Anna,", "Good morning NAME,"),
    ("Liebe Anna,\nder Bericht", "Liebe Anna,", "Liebe NAME,"),
    ("Yesterday, we went there", "", ""),
    ("Unfortunately, I cannot", "", ""),
    ("Thanks, will do", "", ""),
    ("FYI; please share", "", ""),
    ("Hillary won", "", ""),
    ("yes", "", ""),
    ("", "", ""),
]
CLOSINGS = [
    ("I will be there.\n\nThanks,\nKevin", "Thanks,\nKevin"),
    ("I will be there.\n\nBest  regards,\n\n David\n", "Best regards,\nDavid"),
    ("I will be there.\nthanks\nkh", "thanks\nkh"),
    ("Please follow up.  Thank you.", "Thank you."),
    ("See you tomorrow then.  All the best.  Jim", "All the best. Jim"),
    ("April 23rd is fine.  Jim", "Jim"),
    ("thanks Buzz, this helps a lot.\nkh", "kh"),
    ("I will be there.\n\nBest Regards,\nKevin Hyatt\nAsset Development\n713-555-0100", "Best Regards,\nKevin Hyatt"),
    ("thanks\nit works now.\nsee you at the game!", "see you at the game!"),
    ("So bin ich da.\n\nViele Grüße\nAnna", "Viele Grüße\nAnna"),
    ("Thanks, this sounds interesting. I will have a look.", ""),
    ("The best way is to ask.", ""),
    ("Meet me in Denver", ""),
    ("Anna", ""),
    ("Thank you.", ""),
    ("Thanks,\nKevin", "Thanks,\nKevin"),
    ("i got it.\nnot sure about it.", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "written", "form"), OPENINGS)
def test_greeting(text, written, form):
    assert (greeting(text), greeting_form(text)) == (written, form)


@pytest.mark.parametrize(("text", "expected"), CLOSINGS)
def test_sign_off(text, expected):
    assert sign_off(text) == expected
