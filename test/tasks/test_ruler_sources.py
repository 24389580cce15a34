"""The texts behind the tasks: prose, words, the synthetic world, and files of the user."""

from __future__ import annotations

import json
import re
import zipfile
from itertools import islice
from random import Random

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.drawing import documents, words, world
from catekv.tasks.drawing.essay import essay, split_sentences, vocabulary
from catekv.tasks.drawing.fit import TooLongError, confirmed_fit, largest_fit
from catekv.tasks.drawing.pool import Pool
from catekv.tasks.wording.english import EnglishWording

WORD_LISTS = (
    "nouns_people",
    "nouns_things",
    "nouns_nature",
    "nouns_ideas",
    "adjectives",
    "adverbs",
    "verbs",
)


def test_grammar_is_as_large_as_promised():
    frames = len(vocabulary("frames"))
    openers, closers = len(vocabulary("openers")), len(vocabulary("closers"))
    assert frames * (1 + openers + closers) >= 300
    assert len({word for name in WORD_LISTS for word in vocabulary(name)}) >= 2000


def test_hundred_thousand_words_without_a_repetition_or_a_needle():
    sentences = list(islice(essay(Random(3)), 8000))
    assert len(set(sentences)) == len(sentences)
    text = " ".join(sentences)
    assert text.count(" ") >= 90_000
    assert not re.search(r"\d|locker number|watchword|serial code|\bLET\b", text)
    assert not re.search(r"\{|\}|\ba [aeio]", text)


def test_essays_of_other_seeds_share_hardly_a_sentence():
    first = set(islice(essay(Random(1)), 2000))
    second = set(islice(essay(Random(2)), 2000))
    assert len(first & second) < 20


def test_there_are_enough_words_and_none_hides_in_another():
    assert words.ADJECTIVES >= 1000
    assert words.NOUNS >= 3000
    assert words.COMMON_WORDS >= 10_000
    random = Random(0)
    for draw in (words.adjective, words.noun, words.common_word, words.coded_word):
        assert len({len(draw(random)) for _ in range(200)}) == 1


def test_uuids_are_of_version_four():
    random = Random(0)
    for _ in range(50):
        assert re.fullmatch(
            r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
            words.uuid(random),
        )


def test_asking_for_more_than_exists_says_how_many_there_are():
    with pytest.raises(UserError, match="only 676 exist"):
        EnglishWording().variables(700, Random(0), letters=2)


def test_sentence_splitter_knows_abbreviations_and_initials():
    text = (
        'Mr. J. Smith came. "Why?" he asked. Costs rose by 3.5 per cent, e.g. in May. I did. Yes!'
    )
    assert split_sentences(text) == [
        "Mr. J. Smith came.",
        '"Why?" he asked.',
        "Costs rose by 3.5 per cent, e.g. in May.",
        "I did.",
        "Yes!",
    ]


def test_pool_keeps_its_beginning_and_ends_where_the_source_ends():
    def draw(count, random):
        return [str(random.randrange(300)) for _ in range(count)]

    pool = Pool(draw, "seed", taken=["7"])
    first = pool.first(20)
    assert pool.first(60)[:20] == first
    assert Pool(draw, "seed", taken=["7"]).first(60)[:20] == first
    everything = pool.first(1000)
    assert 290 <= len(everything) == len(set(everything)) <= 299
    assert "7" not in everything
    assert Pool(lambda count, random: ["a", "b"][:count], "seed", capacity=2).first(9) == ["a", "b"]


def test_largest_fit_finds_the_largest_for_uneven_units():
    random = Random(5)
    sizes = [random.randint(1, 40) for _ in range(400)]
    totals = [11 + sum(sizes[:n]) for n in range(401)]
    for budget in (60, 400, 450):
        best = max(n for n in range(401) if totals[n] <= budget)
        assert largest_fit(totals.__getitem__, 0, budget, limit=400) == (best, totals[best])
    assert largest_fit(totals.__getitem__, 0, 10**6, limit=400)[0] == 400
    with pytest.raises(TooLongError):
        largest_fit(totals.__getitem__, 0, 10)


@pytest.mark.parametrize("wrong_by", [0.3, 0.9, 1.0, 1.1, 4.0])
def test_confirmed_fit_survives_a_bad_estimate(wrong_by):
    looks = []

    def exact(units):
        looks.append(units)
        return 50 + 7 * units

    units, tokens = confirmed_fit(lambda units: int(wrong_by * 7 * units), exact, 0, 2000)
    assert 2000 - 7 < tokens == 50 + 7 * units <= 2000
    assert len(looks) < 20


@pytest.mark.parametrize("hops", [1, 2])
def test_questions_of_the_world_have_one_answer_in_the_gold_paragraph(hops):
    kinds = set()
    for index in range(60):
        question = world.question(("test", index), hops)
        assert len(question.gold) == hops
        assert len(question.near) == (3 if hops == 1 else 8)
        assert not world.holds_any(question.text, question.outputs)
        assert all(answer in question.gold[-1] for answer in question.outputs)
        others = islice(world.others(("test", index, "others"), question.outputs), 20)
        for text in (*question.gold[:-1], *question.near, *others):
            assert not world.holds_any(text, question.outputs)
        subject = question.gold[0].split("\n")[0]
        assert subject in question.text
        kinds.add(question.text.split(" ")[0])
        if hops == 2:
            bridge = question.gold[1].split("\n")[0]
            assert bridge not in question.text
            assert bridge in question.gold[0]
    assert len(kinds) >= 4


def test_look_alikes_share_names_with_the_subject():
    question = world.question(("test", 3), 1)
    shared = set(question.gold[0].split("\n")[0].split(" "))
    for text in question.near:
        assert shared & set(text.split("\n")[0].split(" "))


def test_question_without_namesakes_that_hide_its_answer_is_given_up():
    random = Random(1)
    entity = world.make("person", random)
    steps = [(entity, next(iter(world._answerable("person"))))]
    assert world._look_alikes(steps, (" ",), 3, random) is None


ANIMALS = ("gull", "otter", "heron", "badger", "adder", "marten", "stoat", "plover")


def squad_articles(articles=6, paragraphs=8):
    """SQuAD v2 rows: a paragraph has an answerable question with two references, and another."""
    data = []
    for article in range(articles):
        entry = {"title": f"Harbour {article}", "paragraphs": []}
        for place, animal in zip(range(paragraphs), ANIMALS, strict=True):
            context = (
                f"  Rail {place} of harbour {article} holds one {animal} at noon. "
                + " ".join(
                    f"The tide of hour {hour} reached mark {hour * 7 + place}."
                    for hour in range(10)
                )
            )
            answers = [
                {"text": text, "answer_start": context.index(text)}
                for text in (animal, f"one {animal}", animal)
            ]
            asked = f"What sits on rail {place} of harbour {article}?"
            entry["paragraphs"].append(
                {
                    "context": context,
                    "qas": [
                        {"id": f"{article}-{place}-a", "question": asked, "answers": answers},
                        {
                            "id": f"{article}-{place}-b",
                            "question": f"Who owns rail {place}?",
                            "answers": [],
                            "is_impossible": True,
                        },
                    ],
                }
            )
        data.append(entry)
    return {"version": "v2.0", "data": data}


def test_squad_rows(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad_articles()))
    corpus = documents.squad(str(path))
    assert len(corpus.questions) == len(corpus.paragraphs) == len(set(corpus.paragraphs)) == 48
    for question in corpus.questions:
        (gold,) = question.gold
        assert gold.startswith("Rail ")
        assert [text in gold for text in question.outputs] == [True, True]
        harbour = gold.split(" holds ")[0].split(" of ")[1]
        assert len(question.near) == 7
        assert all(f"of {harbour} holds" in text for text in question.near)
    tokenizer = ruler_tokenizers.byte_level()
    samples = tasks.build("ruler/qa_1", tokenizer, 8192, 4, squad_path=str(path))
    for sample in samples:
        assert sample.outputs[0] in sample.context
        assert 0.94 <= sample.length / 8192 <= 1
    assert len({sample.question for sample in samples}) == 4
    assert len({round(sample.depths[0], 2) for sample in samples}) > 1


def test_squad_file(published_files):
    path = str(published_files / "qa" / "squad_v2_half_dev.json")
    corpus = documents.squad(path)
    assert len(corpus.questions) == 2910
    assert len(corpus.paragraphs) == len(set(corpus.paragraphs)) == 646
    assert all(q.outputs[0] in q.gold[0] for q in corpus.questions)
    tokenizer = ruler_tokenizers.byte_level()
    samples = tasks.build("ruler/qa_1", tokenizer, 8192, 4, squad_path=path)
    for sample in samples:
        assert sample.outputs[0] in sample.context
        assert 0.97 <= sample.length / 8192 <= 1
    assert len({sample.question for sample in samples}) == 4
    assert len({round(sample.depths[0], 2) for sample in samples}) > 1


def test_file_without_enough_paragraphs_is_refused(tmp_path):
    answer = {"text": "gull", "answer_start": 0}
    paragraphs = [
        {"context": f"Rail {n} holds a gull.", "qas": [{"question": "Who?", "answers": [answer]}]}
        for n in range(9)
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    tokenizer = ruler_tokenizers.byte_level()
    (sample,) = tasks.build("ruler/qa_1", tokenizer, 200, 1, squad_path=str(path))
    assert sample.outputs == ("gull",)
    with pytest.raises(UserError, match="used up"):
        tasks.build("ruler/qa_1", tokenizer, 4096, 1, squad_path=str(path))


def test_hotpotqa_rows(tmp_path):
    """Two paragraphs of six support each answer; the titles come back before their sentences."""
    items = []
    for n in range(12):
        context = [
            [f"Boat {n}.{k}", [f"Boat {n}.{k} carries salt. ", "It left in May. " * 20]]
            for k in range(6)
        ]
        items.append(
            {
                "_id": f"h{n}",
                "question": f"What do boats {n}.1 and {n}.4 carry?",
                "answer": "salt",
                "context": context,
                "supporting_facts": [[f"Boat {n}.1", 0], [f"Boat {n}.4", 0], [f"Boat {n}.4", 1]],
                "type": "comparison",
                "level": "easy",
            }
        )
    path = tmp_path / "hotpotqa.json"
    path.write_text(json.dumps(items))
    corpus = documents.hotpotqa(str(path))
    assert (len(corpus.questions), len(corpus.paragraphs)) == (12, 72)
    tokenizer = ruler_tokenizers.byte_level()
    samples = tasks.build("ruler/qa_2", tokenizer, 8192, 3, hotpotqa_path=str(path))
    for sample in samples:
        (question,) = (q for q in corpus.questions if q.text in sample.question)
        assert [text.split("\n")[0].split(".")[1] for text in question.gold] == ["1", "4"]
        assert len(question.near) == 4
        assert all(text in sample.context for text in (*question.gold, *question.near))
        assert 0.94 <= sample.length / 8192 <= 1


def test_hotpotqa_file(published_files):
    path = str(published_files / "qa" / "hotpotqa_train_sample.json")
    corpus = documents.hotpotqa(path)
    assert (len(corpus.questions), len(corpus.paragraphs)) == (100, 994)
    for sample in tasks.build(
        "ruler/qa_2", ruler_tokenizers.byte_level(), 8192, 3, hotpotqa_path=path
    ):
        (question,) = (q for q in corpus.questions if q.text in sample.question)
        assert all(text in sample.context for text in (*question.gold, *question.near))
        assert 0.97 <= sample.length / 8192 <= 1


def test_folders_of_essays_and_words(tmp_path):
    essays, lists = tmp_path / "essays", tmp_path / "lists"
    essays.mkdir()
    lists.mkdir()
    for n in range(3):
        lines = [f"In year {n} the ship number {k} came home." for k in range(150)]
        (essays / f"{n}.txt").write_text(" ".join(lines))
        (lists / f"{n}.txt").write_text("\n".join(f"word{n}x{k}" for k in range(150)))
    tokenizer = ruler_tokenizers.byte_level()
    samples = tasks.build("ruler/niah_single_2", tokenizer, 2048, 2, essay_path=str(essays))
    assert samples[0].context != samples[1].context
    assert all(0.97 <= sample.length / 2048 <= 1 for sample in samples)
    assert all("A locker number of" in sample.context for sample in samples)
    assert all("the ship number" in sample.context for sample in samples)
    (sample,) = tasks.build("ruler/cwe", tokenizer, 6144, 1, words_path=str(lists))
    assert set(sample.outputs) <= set(words.read_words(str(lists)))


def test_essay_and_word_files(published_files, tmp_path):
    archive = published_files / "public_domain" / "nltk_inaugural.zip"
    with zipfile.ZipFile(archive) as content:
        names = [name for name in content.namelist() if name.endswith(".txt")][:6]
        for name in names:
            text = content.read(name).decode("latin-1")
            (tmp_path / name.rsplit("/", 1)[-1]).write_text(text, encoding="utf-8")
    tokenizer = ruler_tokenizers.byte_level()
    samples = tasks.build("ruler/niah_single_2", tokenizer, 2048, 2, essay_path=str(tmp_path))
    assert samples[0].context != samples[1].context
    assert all(0.97 <= sample.length / 2048 <= 1 for sample in samples)
    assert "A locker number of" in samples[0].context
    lists = published_files / "wordlists"
    (sample,) = tasks.build("ruler/cwe", tokenizer, 4096, 1, words_path=str(lists))
    known = set(words.read_words(str(lists)))
    assert set(sample.outputs) <= known


def test_essay_json_and_word_pairs(tmp_path):
    path = tmp_path / "essays.json"
    path.write_text(json.dumps({"text": "A first thought. A second one. " * 40}))
    names = tmp_path / "words.txt"
    names.write_text("\n".join(f"word{n}" for n in range(40)))
    (sample,) = tasks.build(
        "ruler/niah_single_2",
        ruler_tokenizers.byte_level(),
        700,
        1,
        essay_path=str(path),
        words_path=str(names),
    )
    assert "A second one." in sample.context
    assert re.search(r"A locker number of word\d+-word\d+ is", sample.context)


def squad(answer):
    item = {"question": "Who?", "answers": [{"text": answer}]}
    return {"data": [{"paragraphs": [{"context": "Anna did.", "qas": [item]}]}]}


def hotpotqa(title):
    """One question whose supporting paragraph has this title; there is only "Anna"."""
    context, facts = [["Anna", ["Anna did."]]], [[title, 0]]
    return [{"question": "Who?", "answer": "Anna", "context": context, "supporting_facts": facts}]


@pytest.mark.parametrize(
    ("task", "option", "content", "message"),
    [
        ("niah_single_2", "essay_path", None, "cannot read essays"),
        ("niah_single_2", "essay_path", "", "no prose"),
        ("niah_single_1", "words_path", None, "cannot read the word list"),
        ("niah_single_1", "words_path", "", "no word"),
        ("qa_1", "squad_path", None, "cannot read the questions"),
        ("qa_1", "squad_path", "{", "cannot read the questions"),
        ("qa_1", "squad_path", "[]", "is not SQuAD"),
        ("qa_1", "squad_path", '{"data": []}', "no answerable question"),
        ("qa_1", "squad_path", '{"data": [{"paragraphs": [{"context": 5}]}]}', "is not SQuAD"),
        ("qa_1", "squad_path", "[" * 100_000, "cannot read the questions"),
        ("qa_1", "squad_path", json.dumps(squad(answer=" ")), "'Who\\?' has a blank answer"),
        ("qa_2", "hotpotqa_path", '[{"question": "q"}]', "is not HotpotQA"),
        ("qa_2", "hotpotqa_path", json.dumps(hotpotqa("Other")), "no paragraph supports"),
    ],
)
def test_unusable_files_are_named(task, option, content, message, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        tasks.build(f"ruler/{task}", ruler_tokenizers.byte_level(), 1024, 1, **{option: str(path)})
    assert str(path) in str(caught.value)
