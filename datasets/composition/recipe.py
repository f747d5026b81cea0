"""The published Waterbirds: which birds of CUB-200-2011 count as waterbirds, and on which places they are put.

Sagawa et al., "Distributionally robust neural networks for group shifts", ICLR 2020, section 3. The species are those
with y = 1 in the published metadata.csv.
"""

WATERBIRDS = frozenset(
    (
        "Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross", "Crested_Auklet", "Least_Auklet",
        "Parakeet_Auklet", "Rhinoceros_Auklet", "Brandt_Cormorant", "Red_faced_Cormorant", "Pelagic_Cormorant",
        "Frigatebird", "Northern_Fulmar", "Gadwall", "Eared_Grebe", "Horned_Grebe", "Pied_billed_Grebe",
        "Western_Grebe", "Pigeon_Guillemot", "California_Gull", "Glaucous_winged_Gull", "Heermann_Gull",
        "Herring_Gull", "Ivory_Gull", "Ring_billed_Gull", "Slaty_backed_Gull", "Western_Gull", "Long_tailed_Jaeger",
        "Pomarine_Jaeger", "Red_legged_Kittiwake", "Pacific_Loon", "Mallard", "Hooded_Merganser",
        "Red_breasted_Merganser", "Brown_Pelican", "White_Pelican", "Horned_Puffin", "Artic_Tern", "Black_Tern",
        "Caspian_Tern", "Common_Tern", "Elegant_Tern", "Forsters_Tern", "Least_Tern",
    )
)  # fmt: skip
"""Seabirds and waterfowl, by their folder's name in CUB without the number."""

PUBLISHED_AS_WATERBIRDS = frozenset(("Eastern_Towhee", "Western_Meadowlark", "Western_Wood_Pewee"))
"""Three land birds that the published metadata labels as waterbirds (their names contain "tern")."""

LAND_CATEGORIES = ("bamboo_forest", "forest/broadleaf")
WATER_CATEGORIES = ("ocean", "lake/natural")
"""Categories of Places365."""

CORRELATION = 0.95
VAL_FRACTION = 0.2
"""Of CUB's training images; the test images are CUB's."""


def published_label(category: str) -> int:
    """0 for a species of landbirds, 1 for waterbirds, as in the published metadata.csv."""
    return int(bare_name(category) in WATERBIRDS | PUBLISHED_AS_WATERBIRDS)


def bare_name(category: str) -> str:
    """A class folder's name without CUB's number: Mallard for 087.Mallard."""
    number, dot, name = category.partition(".")
    return name if dot and number.isdigit() else category
