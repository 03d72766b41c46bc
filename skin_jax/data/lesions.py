"""The seven lesion classes: their order, names and columns. The one place that knows them.

Sources: Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 5, 180161 (2018);
the ground truth files of the ISIC 2018 challenge, task 3.
"""

CLASSES: tuple[str, ...] = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
NUM_CLASSES = len(CLASSES)

FULL_NAMES: dict[str, str] = {
    "akiec": "actinic keratosis / Bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}

CHALLENGE_COLUMNS: tuple[str, ...] = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
"""Column order of the challenge's ground truth and prediction CSVs."""

CHALLENGE_ORDER: tuple[int, ...] = tuple(CLASSES.index(c.lower()) for c in CHALLENGE_COLUMNS)
"""Label of each challenge column: `probabilities[:, CHALLENGE_ORDER]` is in the CSV's order."""

HAM10000_COUNTS: dict[str, int] = {
    "akiec": 327,
    "bcc": 514,
    "bkl": 1099,
    "df": 115,
    "mel": 1113,
    "nv": 6705,
    "vasc": 142,
}
"""Images of each class in the full training set (papers A and B)."""
