"""The words the generator knows, in English and Portuguese, without accents and in the singular.

Each table maps what is meant to the words and expressions that say it. Plurals are found by rule.
"""

from __future__ import annotations

Words = dict[str, tuple[str, ...]]

SUBJECTS: Words = {
    "mountains": (
        "mountain", "mountainous", "mount", "peak", "alp", "alps", "alpine", "himalaya", "ridge", "summit",
        "andes", "montanha", "montanhoso", "serra", "pico", "cordilheira", "monte", "cume", "alpe", "volcano",
        "vulcao",
    ),
    "hills": (
        "hill", "rolling hill", "highland", "valley", "colina", "morro", "vale", "outeiro", "toscana",
        "tuscany",
    ),
    "sea": ("sea", "ocean", "seascape", "wave", "seaside", "mar", "oceano", "onda", "maritimo", "marinha"),
    "beach": (
        "beach", "shore", "seashore", "coast", "coastline", "tropical", "praia", "litoral", "costa", "areia",
        "sand",
    ),
    "lake": (
        "lake", "pond", "lagoon", "reflection", "water", "lago", "lagoa", "laguna", "reflexo", "agua",
        "fjord", "fiorde",
    ),
    "river": ("river", "stream", "creek", "rio", "riacho", "ribeirao", "corrego"),
    "island": ("island", "isle", "archipelago", "ilha", "arquipelago", "ilheu"),
    "forest": (
        "forest", "wood", "woodland", "jungle", "tree", "pine", "fir", "spruce", "floresta", "bosque", "mata",
        "selva", "arvore", "pinheiro", "pinhal", "arvoredo",
    ),
    "desert": ("desert", "dune", "sahara", "sand dune", "deserto", "duna", "saara", "oasis"),
    "canyon": (
        "canyon", "grand canyon", "mesa", "butte", "gorge", "badland", "canion", "desfiladeiro", "chapada",
        "penhasco",
    ),
    "city": (
        "city", "skyline", "cityscape", "town", "urban", "skyscraper", "downtown", "metropolis", "building",
        "street", "cidade", "arranha ceu", "predio", "metropole", "urbano", "urbana", "centro da cidade",
        "rua", "new york", "tokyo", "toquio", "sao paulo", "manhattan", "nova york", "nova iorque", "lisboa",
        "lisbon",
    ),
    "meadow": (
        "meadow", "field", "grassland", "prairie", "pasture", "grass", "countryside", "landscape", "campo",
        "prado", "campina", "pradaria", "pasto", "relva", "grama", "paisagem", "savanna", "savana",
    ),
    "flowers": (
        "flower", "wildflower", "poppy", "tulip", "daisy", "sunflower", "blossom", "flor", "papoula",
        "tulipa", "margarida", "girassol", "girassois", "florido", "florida", "lavanda", "lavender field",
        "campo de lavanda", "floral", "lavender flower",
    ),
    "stars": (
        "star", "starry", "starry night", "starry sky", "starlight", "night sky", "estrela", "estrelado",
        "estrelada", "ceu estrelado", "ceu noturno",
    ),
    "milky way": ("milky way", "via lactea"),
    "moon": (
        "moon", "moonlight", "moonlit", "full moon", "crescent", "moonrise", "lua", "luar", "lua cheia",
        "enluarado",
    ),
    "aurora": ("aurora", "aurora borealis", "northern light", "aurora boreal", "luzes do norte", "polar light"),
    "space": (
        "galaxy", "nebula", "space", "outer space", "cosmos", "cosmic", "universe", "galaxia", "nebulosa",
        "espaco", "universo", "cosmo", "cosmico",
    ),
    "underwater": (
        "underwater", "coral reef", "reef", "deep sea", "ocean floor", "submarine", "subaquatico",
        "subaquatica", "recife", "recife de coral", "fundo do mar", "debaixo d agua", "coral",
    ),
    "abstract": (
        "abstract", "fluid art", "generative", "fractal", "swirl", "marble", "abstrato", "abstrata",
        "marmore", "geometric", "pattern", "texture", "textura", "psychedelic", "psicodelico",
    ),
    "palms": ("palm", "palm tree", "coconut", "palmeira", "coqueiro"),
    "boat": ("boat", "sailboat", "ship", "sailing", "yacht", "barco", "veleiro", "navio", "canoa", "jangada"),
    "birds": ("bird", "seagull", "flock", "passaro", "ave", "gaivota", "andorinha"),
    "sun": ("sun", "sol"),
}  # fmt: skip

TIMES: Words = {
    "sunset": (
        "sunset", "sundown", "golden hour", "evening", "por do sol", "por de sol", "ocaso", "entardecer",
        "poente", "hora dourada", "tardinha", "crepusculo",
    ),
    "sunrise": (
        "sunrise", "dawn", "daybreak", "morning", "first light", "nascer do sol", "amanhecer", "alvorada",
        "alvorecer", "manha", "madrugada", "raiar do dia", "aurora matinal",
    ),
    "dusk": ("dusk", "twilight", "blue hour", "gloaming", "anoitecer", "lusco fusco", "hora azul"),
    "night": ("night", "midnight", "nighttime", "nocturne", "nocturnal", "noite", "meia noite", "noturno", "noturna"),
    "day": (
        "day", "daytime", "noon", "midday", "daylight", "afternoon", "sunny", "dia", "meio dia", "tarde",
        "ensolarado", "ensolarada", "blue sky", "ceu azul",
    ),
}  # fmt: skip

WEATHER: Words = {
    "fog": (
        "fog", "foggy", "mist", "misty", "haze", "hazy", "nevoeiro", "neblina", "nevoa", "bruma", "enevoado",
        "enevoada", "cerracao",
    ),
    "rain": (
        "rain", "rainy", "raining", "drizzle", "downpour", "wet", "chuva", "chuvoso", "chuvosa", "chovendo",
        "garoa",
    ),
    "storm": (
        "storm", "stormy", "thunderstorm", "lightning", "thunder", "tempest", "tempestade", "tormenta",
        "trovoada", "raio", "relampago", "temporal",
    ),
    "snow": ("snowing", "snowfall", "snowstorm", "blizzard", "snowflake", "nevando", "nevasca", "caindo neve"),
    "clouds": ("cloud", "cloudy", "cloudscape", "overcast", "nuvem", "nuvens", "nublado", "nublada", "encoberto"),
    "clear": ("clear sky", "clear skies", "cloudless", "clear", "ceu limpo", "ceu aberto", "limpido", "ceu claro"),
}  # fmt: skip

SEASONS: Words = {
    "winter": (
        "winter", "snow", "snowy", "snow covered", "snow capped", "ice", "icy", "frozen", "frost", "arctic",
        "inverno", "neve", "nevado", "nevada", "gelo", "gelado", "congelado", "artico",
    ),
    "autumn": ("autumn", "fall", "autumnal", "autumn leaves", "fall colors", "fall colours", "outono", "outonal"),
    "spring": ("spring", "springtime", "cherry blossom", "sakura", "primavera", "primaveril", "cerejeira"),
    "summer": ("summer", "summertime", "verao"),
}  # fmt: skip

STYLES: Words = {
    "watercolour": ("watercolour", "watercolor", "aquarelle", "aquarela", "ink wash", "aguada"),
    "pixel art": (
        "pixel art", "pixelart", "8 bit", "8bit", "16 bit", "16bit", "pixelated", "pixel", "arte pixel",
        "pixelado",
    ),
    "line art": (
        "line art", "lineart", "sketch", "drawing", "pencil", "ink drawing", "pen and ink", "engraving",
        "etching", "line drawing", "pencil drawing", "desenho", "desenho a lapis", "esboco", "nanquim",
        "traco", "gravura", "bico de pena",
    ),
    "poster": (
        "poster", "flat", "minimal", "minimalist", "minimalism", "vector", "vector art", "flat design",
        "travel poster", "illustration", "cartoon", "anime", "cartaz", "minimalista", "vetor", "vetorial",
        "ilustracao", "screen print", "serigrafia", "low poly",
    ),
    "oil": (
        "oil painting", "oil on canvas", "oil", "impressionist", "impressionism", "impasto", "painting",
        "painterly", "van gogh", "monet", "oleo", "pintura a oleo", "oleo sobre tela", "pintura",
        "impressionista", "impressionismo", "acrylic",
    ),
    "monochrome": (
        "black and white", "monochrome", "b w", "bw", "grayscale", "greyscale", "noir", "preto e branco",
        "monocromatico", "tons de cinza", "ansel adams", "escala de cinza",
    ),
    "neon": ("synthwave", "vaporwave", "neon", "cyberpunk", "retrowave", "outrun", "ciberpunk"),
    "photo": (
        "photo", "photograph", "photography", "photorealistic", "photorealism", "realistic", "foto",
        "fotografia", "fotorrealista", "realista",
    ),
}  # fmt: skip

COLOURS_ENGLISH: Words = {
    "red": ("red", "crimson", "scarlet", "ruby"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow",),
    "gold": ("gold", "golden"),
    "green": ("green", "emerald", "lime"),
    "teal": ("teal",),
    "turquoise": ("turquoise", "aqua", "aquamarine"),
    "cyan": ("cyan",),
    "blue": ("blue", "azure", "navy", "cobalt"),
    "indigo": ("indigo",),
    "purple": ("purple", "violet"),
    "lavender": ("lavender", "lilac"),
    "magenta": ("magenta", "fuchsia"),
    "pink": ("pink", "rose", "rosy"),
    "brown": ("brown", "sepia"),
    "white": ("white",),
    "grey": ("grey", "gray", "silver"),
    "black": ("black",),
}  # fmt: skip

COLOURS_PORTUGUESE: Words = {
    "red": ("vermelho", "vermelha", "rubro", "rubra", "escarlate", "carmesim"),
    "orange": ("laranja", "alaranjado", "alaranjada", "ambar"),
    "yellow": ("amarelo", "amarela"),
    "gold": ("dourado", "dourada", "ouro"),
    "green": ("verde", "esmeralda"),
    "turquoise": ("turquesa",),
    "cyan": ("ciano",),
    "blue": ("azul", "azulado", "azulada", "anil"),
    "purple": ("roxo", "roxa", "violeta", "purpura", "arroxeado"),
    "lavender": ("lilas",),
    "pink": ("rosa", "rosado", "rosada", "cor de rosa"),
    "brown": ("marrom", "castanho", "castanha"),
    "white": ("branco", "branca"),
    "grey": ("cinza", "cinzento", "cinzenta", "prateado", "prateada"),
    "black": ("preto", "preta", "negro", "negra"),
}  # fmt: skip

NEGATIONS = ("no", "without", "sem", "nenhum", "nenhuma")

IGNORED = frozenset(
    """a an and the of in on at over under with by to from for behind above below near between into through as is are
    very one some view scene image picture de da do das dos e o os um uma uns umas em no na nos nas sobre sob
    com por para entre atras acima abaixo perto ao aos vista cena imagem break it its beautiful stunning
    gorgeous amazing epic majestic dramatic best quality masterpiece highly detailed detail ultra high
    resolution res hd uhd hdr 4k 8k 16k sharp focus intricate award winning professional trending artstation
    wallpaper cinematic lighting vivid vibrant colorful colourful perfect nice lovely serene peaceful calm quiet
    style art artwork lindo linda belo bela bonito bonita maravilhoso maravilhosa incrivel dramatico dramatica
    qualidade alta alto obra prima melhor detalhado detalhada detalhe majestoso majestosa colorido colorida
    vivido estilo arte sereno serena tranquilo tranquila calmo calma cinematografico cinematografica
    resolucao""".split()  # noqa: SIM905
)  # fmt: skip
"""Words that join others or only praise; neither used nor reported as unknown."""

BLOSSOMS = {
    "poppy": "red",
    "papoula": "red",
    "sunflower": "yellow",
    "girassol": "yellow",
    "girassois": "yellow",
    "lavanda": "lavender",
    "lavender field": "lavender",
    "lavender flower": "lavender",
    "campo de lavanda": "lavender",
    "daisy": "white",
    "margarida": "white",
}
"""Flowers that have a colour of their own."""

LOCAL = {
    "flowers": "flowers",
    "sea": "water",
    "lake": "water",
    "river": "water",
    "forest": "foliage",
    "autumn": "foliage",
    "mountains": "ground",
    "hills": "ground",
    "meadow": "ground",
    "desert": "ground",
    "beach": "ground",
    "canyon": "ground",
}
"""What a colour standing next to a subject colours, instead of the whole light."""
