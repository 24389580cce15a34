"""Chinese prose, a small Chinese world to ask questions about, and news of eight classes.

Simplified characters. The sentences mean little; they are grammatical and drawn from lists, and no
one in them exists. A year is written in digits with 年, as in most modern texts.
"""

# ruff: noqa: RUF001, SIM905  (Chinese punctuation is meant; word lists read better as text)
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from catekv.tasks.core.randomness import generator
from catekv.tasks.drawing.world import Question, holds_any

_SURNAMES = tuple("赵钱孙周吴郑冯陈褚卫蒋沈韩杨朱秦许何吕张孔曹严华金魏陶姜谢邹喻潘葛范彭鲁韦苗方")
_GIVEN = tuple("文明志远国安立新春生秋实德广思齐子敬若水云海松柏梅兰竹清雅静宜家宝玉成天佑长庚晓东")
_PLACE_FIRST = tuple("石青白黄清金银东西南北长大小上下新旧高平龙凤虎马")
_PLACE_SECOND = tuple("桥溪沙岭泉湾坪塘河坡沟井岩江湖滩门亭渡")
_PLACE_ENDINGS = ("镇", "县", "村")
_RIVERS = tuple("澜沐汀渭沅泾淇洛湘漓沭潞")
_GOODS = tuple("茶叶 丝绸 瓷器 竹器 蜂蜜 木雕 草药 灯笼 剪纸 纸伞 铜器 香料 酱菜 折扇 砚台".split())
_JOBS = tuple("木匠 裁缝 船夫 郎中 画师 教书先生 铁匠 石匠 账房先生 乐师 园丁 药师".split())
_TRADES = tuple("纺织厂 造船厂 印书馆 粮行 药铺 茶庄 瓷窑 油坊 钱庄 酒坊".split())
_LUCK = tuple("永和 德顺 同兴 广源 恒泰 宝丰 裕民 万昌 福隆 瑞祥".split())

_SLOTS: dict[str, tuple[str, ...]] = {
    "when": tuple(
        "清晨 傍晚 入冬以后 雨停之后 那年春天 集市散去时 天刚亮 中秋前后 大雪过后 午饭之后".split()
    ),
    "who": tuple(
        "一位老人 几个孩子 邻家的妇人 过路的商人 守夜的更夫 年轻的学徒 两名渔夫 村里的先生 "
        "赶车的伙计 一群学生 卖花的姑娘 寺里的和尚".split()
    ),
    "where": tuple(
        "河边 城门外 院子里 桥头 山脚下 茶馆里 渡口 书房里 田埂上 码头 老槐树下 巷子口".split()
    ),
    "thing": tuple(
        "一把旧伞 几本旧书 一盏油灯 半篮鸡蛋 一封家信 一只铜壶 两坛黄酒 一幅山水画 几枚铜钱 "
        "一件棉袄 一担柴火 一张渔网".split()
    ),
    "did": tuple("放下了 找到了 收起了 修好了 带走了 换来了 借走了 看中了 擦净了 卖掉了".split()),
    "felt": tuple("心里很高兴 半天没有说话 想起了家乡 不住地点头 叹了一口气 笑出了声".split()),
    "view": tuple(
        "柳枝轻轻摆动 远山蒙着薄雾 水面泛着微光 炊烟慢慢升起 灯火一盏盏亮起 路上铺满落叶".split()
    ),
    "idea": tuple("耐心 诚实 勤俭 友情 学问 手艺 公道 信用 谦和 勇气".split()),
}
_FRAMES: tuple[tuple[str, ...], ...] = (
    ("{when}", "，", "{who}", "在", "{where}", "{did}", "{thing}", "。"),
    ("{who}", "走到", "{where}", "，", "{felt}", "。"),
    ("{where}", "很安静，", "{view}", "。"),
    ("{when}", "，", "{view}", "，", "{who}", "{felt}", "。"),
    ("人们常说，有了", "{idea}", "，", "{thing}", "也会变得贵重。"),
    ("{who}", "把", "{thing}", "留在", "{where}", "，然后", "{felt}", "。"),
    ("在", "{who}", "看来，", "{idea}", "比", "{thing}", "更要紧。"),
    ("{when}", "，有人在", "{where}", "谈起", "{idea}", "，", "{who}", "听了", "{felt}", "。"),
)


def sentence(random: Random) -> str:
    """One sentence."""
    pieces = random.choice(_FRAMES)
    return "".join(
        random.choice(_SLOTS[piece[1:-1]]) if piece[0] == "{" else piece for piece in pieces
    )


def prose(random: Random) -> Iterator[str]:
    """Endless sentences. Their number is limited, so one comes again after many thousands."""
    while True:
        yield sentence(random)


def person(random: Random) -> str:
    return random.choice(_SURNAMES) + "".join(random.sample(_GIVEN, 2))


def place(random: Random) -> str:
    stem = random.choice(_PLACE_FIRST) + random.choice(_PLACE_SECOND)
    return stem + random.choice(_PLACE_FIRST) + random.choice(_PLACE_ENDINGS)


def _firm(random: Random) -> str:
    return place(random) + random.choice(_LUCK) + random.choice(_TRADES)


_VALUES: dict[str, Callable[[Random], str]] = {
    "person": person,
    "place": place,
    "firm": _firm,
    "year": lambda random: f"{random.randint(1000, 1949)}年",
    "river": lambda random: random.choice(_PLACE_FIRST) + random.choice(_RIVERS) + "河",
    "goods": lambda random: random.choice(_GOODS),
    "job": lambda random: random.choice(_JOBS),
}


@dataclass(frozen=True)
class _Relation:
    kind: str
    statements: tuple[str, str]
    question: str


_RELATIONS: dict[str, tuple[_Relation, ...]] = {
    "person": (
        _Relation("place", ("{s}出生在{v}。", "{v}是{s}的故乡。"), "{s}出生在哪里？"),
        _Relation("year", ("{s}生于{v}。", "家谱记载，{v}{s}出生。"), "{s}是哪一年出生的？"),
        _Relation("person", ("{s}拜{v}为师。", "教{s}读书的是{v}。"), "{s}的老师是谁？"),
        _Relation("job", ("{s}是一名{v}。", "{s}靠做{v}养家。"), "{s}是做什么的？"),
        _Relation("firm", ("{s}在{v}做过事。", "{v}雇用过{s}。"), "{s}在哪里做过事？"),
    ),
    "place": (
        _Relation("river", ("{v}从{s}旁流过。", "{s}坐落在{v}岸边。"), "流经{s}的是哪条河？"),
        _Relation("year", ("{s}建于{v}。", "早在{v}，{s}就已建成。"), "{s}建于哪一年？"),
        _Relation("goods", ("{s}盛产{v}。", "{s}最有名的特产是{v}。"), "{s}的特产是什么？"),
        _Relation("person", ("{s}的学堂由{v}所建。", "{v}为{s}修了学堂。"), "谁为{s}修了学堂？"),
    ),
    "firm": (
        _Relation("person", ("{s}由{v}创办。", "{s}的创办人是{v}。"), "{s}是谁创办的？"),
        _Relation("year", ("{s}于{v}开张。", "{v}，{s}挂出了招牌。"), "{s}是哪一年开张的？"),
        _Relation("place", ("{s}在{v}设有分号。", "{v}有{s}的分号。"), "{s}的分号设在哪里？"),
        _Relation("goods", ("{s}还兼卖{v}。", "在{s}也能买到{v}。"), "{s}还兼卖什么？"),
    ),
}


@dataclass
class _Subject:
    """Someone or something with a name; facts are drawn when they are first looked at."""

    kind: str
    name: str
    random: Random = field(repr=False)
    facts: dict[int, str] = field(default_factory=dict)

    def fact(self, number: int) -> str:
        if number not in self.facts:
            relation = _RELATIONS[self.kind][number]
            self.facts[number] = _VALUES[relation.kind](self.random)
        return self.facts[number]

    def statement(self, number: int, form: int) -> str:
        frame = _RELATIONS[self.kind][number].statements[form]
        return frame.format(s=self.name, v=self.fact(number))

    def paragraph(self, form: int | None = None) -> str:
        """All facts in drawn order; ``form`` chooses between the two ways to say each."""
        order = list(range(len(_RELATIONS[self.kind])))
        self.random.shuffle(order)
        return "".join(
            self.statement(number, self.random.randrange(2) if form is None else form)
            for number in order
        )


def _subject(random: Random) -> _Subject:
    kind = random.choice(tuple(_RELATIONS))
    return _Subject(kind, _VALUES[kind](random), random)


def question(seed: tuple[object, ...], near: int = 3) -> Question:
    """A question about one fact, its paragraph, and look-alikes that hold no answer."""
    for attempt in range(100):
        random = generator(*seed, "question", attempt)
        subject = _subject(random)
        number = random.randrange(len(_RELATIONS[subject.kind]))
        relation = _RELATIONS[subject.kind][number]
        answers = (subject.fact(number),)
        if holds_any(subject.name, answers):
            continue
        gold = subject.paragraph()
        text = relation.question.format(s=subject.name)
        alike = (
            _Subject(subject.kind, _VALUES[subject.kind](random), random).paragraph()
            for _ in range(50 * near)
        )
        others_like = [part for part in alike if not holds_any(part, answers)][:near]
        return Question(text, answers, (gold,), tuple(others_like))
    raise AssertionError(f"no question without an accidental answer for seed {seed}")


def others(seed: tuple[object, ...], answers: tuple[str, ...]) -> Iterator[str]:
    """Endless further paragraphs, none of which holds an answer."""
    random = generator(*seed)
    while True:
        part = _subject(random).paragraph()
        if not holds_any(part, answers):
            yield part


def described(random: Random) -> tuple[str, str]:
    """A paragraph about someone or something, and the same facts said differently."""
    subject = _subject(random)
    return subject.paragraph(0), subject.paragraph(1)


def statements(random: Random, count: int) -> list[tuple[str, str]]:
    """Facts of as many subjects, each said in two ways."""
    found = []
    for _ in range(count):
        subject = _subject(random)
        number = random.randrange(len(_RELATIONS[subject.kind]))
        found.append((subject.statement(number, 0), subject.statement(number, 1)))
    return found


#: class to what its news are about and what happened
_NEWS: dict[str, tuple[str, str]] = {
    "体育": ("青年足球队 女子排球队 田径选手 乒乓球队", "赢得了比赛 打破了纪录 进入了决赛"),
    "教育": ("乡村小学 师范学校 高中毕业班 校长们", "开始了新学期 增加了阅读课 更换了课本"),
    "医药卫生": ("县医院 护士们 疫苗接种站 中药房", "延长了门诊时间 引进了新药 救治了病人"),
    "交通运输": ("长途客车站 铁路部门 轮渡公司", "调整了班次 恢复了通车 降低了票价"),
    "农业": ("种粮大户 果园 养鸭合作社 水稻田", "迎来了丰收 改种了新品种 完成了春耕"),
    "财政金融": ("地方银行 税务局 储蓄所 证券公司", "下调了利率 公布了账目 发放了贷款"),
    "环境气象": ("气象台 林场 河道管理处 湿地保护区", "发布了大风预警 种下了树苗 测出了水质"),
    "科学技术": ("天文台 实验室 工程师们 计算机中心", "公布了新发现 改进了仪器 完成了试验"),
}
NEWS_CLASSES = tuple(_NEWS)


def news(random: Random) -> tuple[str, str]:
    """A short news text and its class."""
    name = random.choice(NEWS_CLASSES)
    subjects, events = (words.split() for words in _NEWS[name])
    where = place(random)
    day = f"{random.randint(1, 12)}月{random.randint(1, 28)}日"
    first, second = random.sample(events, 2)
    return (
        f"{where}{day}消息：当地{random.choice(subjects)}{first}。{person(random)}说，"
        f"此前{random.choice(subjects)}也{second}。{sentence(random)}",
        name,
    )
