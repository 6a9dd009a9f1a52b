"""Names of many origins, places and firms to put in the place of real ones. Knows words only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pretrain.corpus import Person
from pretrain.private import invented_word

FIRST = """Aaliyah Aarav Abdul Adaeze Adam Adele Aditi Agnieszka Ahmed Aiko Aino Aisha Akira Alan Alejandra Alessandro Alexei Ali Alice
Alina Amara Ambrose Amina Amir Amit Ana Anders Andrea Andrzej Angela Anika Anjali Anna Antoine Antonia Anya Ariel Arjun Arturo Asha
Astrid Aurora Ayşe Azadeh Bashir Beatriz Ben Bianca Birgit Björn Boris Branka Brianna Bruno Camille Carla Carlos Carmen Cecilia Chen
Chiara Chinedu Chloe Christa Ciarán Claire Connor Cristina Dagny Daiki Damian Daniela Daria David Deepa Denise Diego Dimitri Dina
Divya Dmitri Dong Ebele Edith Eduardo Eero Ekaterina Elena Eli Elif Elin Emeka Emil Emily Emma Enrique Erik Esther Eva Ewa Fabian
Farah Fatima Femi Fernanda Finn Fiona Florian Francesca François Freya Gabriel Gaurav Georgia Gerhard Gianna Giulia Goran Grace Greta
Guillermo Gunnar Hadiya Hakim Hana Hanna Haruto Hassan Heidi Helena Hiro Hugo Ibrahim Ida Igor Imani Ines Ingrid Irina Isabel Ivan
Jada Jamal Jan Jana Jasmine Javier Jens Jessica Jin Joanna Jonas Jorge Josefine Joshua Juan Julia Jun Kaito Kamala Karim Karin Katya
Kavya Keiko Kenji Khadija Kiran Klaus Kofi Kwame Lars Laszlo Latisha Laura Layla Leila Lena Leon Li Liam Lin Linh Livia Lorenzo Louise
Luca Lucia Luis Magda Mai Malik Manuel Marcin Marek Margit Maria Marta Mateo Matteo Maya Mehmet Mei Mika Milan Min Mina Mira Miriam
Mohamed Monika Nadia Naoko Natalia Nia Nikhil Nikolai Nils Nina Noor Nora Obinna Olga Oliver Olu Omar Oscar Otto Padma Pablo Paolo
Patrick Paula Pavel Pedro Petra Philippa Pia Pierre Piotr Priya Qiang Quentin Rachel Rafael Rahul Ravi Reza Rhea Ricardo Rina Robert
Rohan Rosa Rui Ruth Ryo Saanvi Sabine Sadia Sakura Salma Samir Sandeep Sanjay Sara Satoshi Saul Sebastian Selma Sergei Shira Shreya
Simone Siobhán Sofia Sonja Stefan Sunita Sven Svetlana Takeshi Tamar Tanvi Tariq Tatiana Tendai Teresa Thabo Theo Thi Tomas Tomasz
Tove Uma Ursula Valentina Vera Viktor Vikram Vivek Wanjiru Wei Wiktor Xavier Xin Yael Yan Yasmin Yosef Yuki Yuri Yusuf Zainab Zara
Zeynep Zoe Zuzana Peter George Helen Marion Walter Susan Janet Keith Gillian Derek Roger Tim Tom Sam Joe Kate Lucy Nick Matt Dan Alex
Chris Pat Kim Lee Jo Max Ray Ted Amy Meg Liz Sue Jill Gwen Hal Ned Roy Ian Neil Kay Lyn Dot Gus Ike""".split()

LAST = """Abbott Abdi Abe Acharya Adeyemi Adler Afolabi Agarwal Ahmadi Ahmed Akhtar Alonso Alvarez Andersen Anderson Ansari Aoki
Arslan Asante Avila Baker Balogun Banerjee Barbieri Baron Bauer Becker Bell Benitez Berg Bernard Bianchi Blake Bondarenko Borg Bose
Boyle Brandt Braun Brown Bruun Burke Byrne Cabrera Cahill Campbell Cardoso Carlsen Carter Castillo Chan Chandra Chavez Chen Cheng Cho
Chopra Clark Cohen Collins Conti Cooper Costa Cruz Daly Das Davies Dekker Delgado Demir Desai Diaz Dietrich Dlamini Dubois Duffy
Dumont Eriksen Espinoza Evans Faber Farouk Fernandes Ferrari Fischer Fitzgerald Flores Fontaine Forsberg Foster Fournier Friedman
Fujita Gallagher Gallo Garcia Ghosh Gibson Gomez Gonzalez Gordon Graham Grant Greco Green Gruber Gupta Haas Haddad Hale Hamid Hansen
Harris Hashimoto Hassan Hayashi Henriksen Herrera Hoang Hoffmann Holm Horvat Howard Hughes Huang Hussain Ibarra Ibrahim Ito Ivanov
Jansen Janssen Jensen Jha Jimenez Johansson Joshi Kaminski Kapoor Karlsson Kaur Keita Kelly Kennedy Khan Kim King Kirk Klein Kobayashi
Kovacs Kowalski Kozlov Kraus Krishnan Kumar Kuznetsov Lam Lambert Larsen Laurent Le Lehmann Levy Lewis Li Lim Lin Lindqvist Lombardi
Lopez Lund Lynch Mahmoud Malik Marino Markovic Martin Martinez Mbeki Mehta Mendes Mensah Meyer Miller Mishra Mitchell Molina Moore
Morales Moreau Moretti Mori Morris Mueller Murphy Murray Mwangi Nagy Nair Nakamura Navarro Ndiaye Nelson Neumann Ng Nguyen Nielsen
Nilsson Novak Nowak Nwosu Obi Okafor Okonkwo Olsen Oliveira Ortega Osei Ozturk Pappas Park Patel Pereira Perez Petersen Petrov Pham
Phillips Popescu Powell Prasad Quinn Rahman Ramirez Ramos Rao Reddy Reid Ricci Richter Rivera Roberts Rojas Romano Rossi Roux Russo
Ryan Saito Salazar Santos Sato Schmidt Schneider Schroeder Schulz Sharma Shaw Silva Singh Smirnov Smith Sokolov Soto Stewart Sullivan
Suzuki Svensson Takahashi Tan Tanaka Taylor Thomas Thompson Toth Tran Turner Vargas Vasquez Vega Virtanen Vogel Volkov Wagner Walker
Wallace Wang Watanabe Weber Weiss Wilson Winter Wong Wood Wright Wu Yamamoto Yang Yilmaz Young Zhang Zhao Zimmermann""".split()

PLACES = """Aberdeen Accra Adelaide Amsterdam Ankara Antwerp Athens Atlanta Auckland Austin Baltimore Bangkok Barcelona Basel Belfast Bergen
Berlin Bilbao Birmingham Bologna Boston Brisbane Bristol Brussels Budapest Calgary Cambridge Cardiff Casablanca Charlotte Chennai
Chicago Cleveland Cologne Columbus Copenhagen Cork Dallas Delhi Denver Detroit Dhaka Dresden Dubai Dublin Durban Edinburgh Edmonton
Eindhoven Frankfurt Gdansk Geneva Genoa Ghent Glasgow Gothenburg Graz Halifax Hamburg Hanoi Helsinki Houston Innsbruck Istanbul Jakarta
Kampala Karachi Krakow Kyoto Lagos Lausanne Leeds Leipzig Lille Lima Lisbon Liverpool London Luxembourg Lyon Madrid Malmo Manchester
Manila Marseille Melbourne Memphis Miami Milan Milwaukee Minneapolis Montreal Mumbai Munich Nairobi Nantes Naples Nashville Newcastle
Nice Nottingham Nuremberg Oakland Omaha Osaka Oslo Ottawa Oxford Palermo Paris Perth Philadelphia Phoenix Pittsburgh Portland Porto
Prague Pune Quebec Riga Rome Rotterdam Sacramento Salzburg Santiago Seattle Seoul Seville Shanghai Sheffield Singapore Sofia Stockholm
Stuttgart Sydney Tallinn Tampa Tokyo Toronto Toulouse Trieste Tulsa Turin Utrecht Valencia Vancouver Vienna Vilnius Warsaw Wellington
Winnipeg York Zagreb Zurich""".split()

_FIRM_ENDS = "ex on ix ora is um ent eo al ia".split()

# Names that are words first: never taken for a name by themselves.
_ALSO_WORDS = frozenset(
    """A An And Will May Bill Mark Art Grant Rich Frank Grace Hope Joy Faith Rose Jack Drew Chase Chip Pat Rusty Dot Don Rob Sue Ray Bob Guy
    Gene Max Dean Wade Lane Chance Cash Price Power Page Long Short Day West East North South New Trade Energy Gas Risk Legal Credit
    Market Markets Team Group Office Research Desk Best Love White Black Brown Green Gray King Young Hill Wood Bush Moore Rice Post Hunt
    Case Field Fields Stock Sales Swap Book Books Deal Deals The This That Please Thanks Thank Let From Real State States General Special
    Major Minor Key Keys Call Calls Pay Banks Bank Fund Funds Law Court Home House Houston Dallas Austin Denver Portland Calgary London
    Phoenix Jordan Paris Sydney Florence Chad Virginia Carolina Georgia Dakota Houstons Mike's It He She We They You Our My All Any One Two
    Good Great Hi Hey Dear Hello Re Fw Fwd Per So If In On At As Is To Of Or For But Not No Yes Ok Do Did Can See Get Got Go Am Are Was
    March April June August English Chinese Summer Winter Spring Fall Eve Christmas Sunday Monday Friday Just Also Still Here There Where
    When What Who Why How Attached Enclosed Sorry Congratulations Regards Sincerely Cheers Best Yours Ms Mr Mrs Dr Vice Jr Sr Sharp
    Stone Rivers Lakes Parks Walls Bell Ball Ward Bass Fox Wolf Hall Church Street Road Story Weeks Lay Means Says Sager Master Senior
    Staff Self Speed Strong Sweet Swift Small Early Ring Rain Snow Frost Cook Baker Carter Weather Counsel Baby Mom Dad Honey Ken Sat
    """.split()
)
_ALSO_WORDS_BUT_NAMES = frozenset("Ken Don Bob Rob Ray Max Jack Frank Bill Mark Sue Jordan Gene Dean".split())


@dataclass(frozen=True)
class Names:
    """What counts as a name in a text, and what may stand in its place."""

    known_first: frozenset[str]
    known_last: frozenset[str]
    first: tuple[str, ...]
    last: tuple[str, ...]

    def may_follow(self, word: str) -> bool:
        """Whether `word`, capitalised and right after a first name, is taken for a last name."""
        return word in self.known_last or word not in _ALSO_WORDS

    def new_first(self, rng: random.Random) -> str:
        """A first name, now and then a hyphenated one or one that nobody bears."""
        draw = rng.random()
        if draw < 0.08:
            return invented_word(rng, rng.choice((2, 3, 3, 4))).capitalize()
        if draw < 0.11:
            return f"{rng.choice(FIRST)}-{rng.choice(FIRST)}"
        return rng.choice(self.first)

    def new_last(self, rng: random.Random) -> str:
        """A last name: "Weber", "O'Brien", "van der Berg", "Lopez-Kaur", or one that nobody bears."""
        draw = rng.random()
        if draw < 0.10:
            return invented_word(rng, rng.choice((2, 3, 4))).capitalize()
        if draw < 0.14:
            return f"{rng.choice(LAST)}-{rng.choice(LAST)}"
        if draw < 0.17:
            return rng.choice(("O'{}", "Mc{}", "van der {}", "de {}", "St. {}", "Di {}")).format(rng.choice(LAST))
        if draw < 0.23:
            return rng.choice(ACCENTED)
        return rng.choice(self.last)


ACCENTED = """Müller Ångström Fernández Gonçalves Sørensen Åkesson Lefèvre Höß Nuñez Đorđević Çelik Šimić Dvořák Łukasz Wójcik Núñez Bjørn
Gašpar Öztürk Pérez Ibáñez Jørgensen Côté Béla Kovačić Ñíguez Zając Straße Håkansson Güler""".split()


def new_firm(rng: random.Random) -> str:
    return (invented_word(rng)[:4] + rng.choice(_FIRM_ENDS)).capitalize()


def collect(people: Iterable[Person], least: int = 3) -> Names:
    """Names from the lists above and from the people of the corpora: first and last names apart, each seen `least` times."""
    firsts: Counter[str] = Counter()
    lasts: Counter[str] = Counter()
    for p in set(people):
        if p.last and p.first.isalpha() and p.last.isalpha():
            firsts[p.first.capitalize()] += 1
            lasts[p.last.capitalize()] += 1
    first = {n for n, seen in firsts.items() if seen >= least and len(n) > 2} | set(FIRST)
    last = {n for n, seen in lasts.items() if seen >= least and len(n) > 2} | set(LAST)
    return Names(
        known_first=frozenset(first - (_ALSO_WORDS - _ALSO_WORDS_BUT_NAMES)),
        known_last=frozenset(last - _ALSO_WORDS),
        first=tuple(sorted(first - _ALSO_WORDS)) + tuple(FIRST),
        last=tuple(sorted(last - _ALSO_WORDS)) + tuple(LAST),
    )
