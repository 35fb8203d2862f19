"""Values for the slots that smart-home templates leave open: the names, places and numbers of a household."""

from collections.abc import Sequence

# One list per Home Assistant domain, because "lock the kettle" would teach nothing.
NAMES: dict[str, Sequence[str]] = {
    "binary_sensor": (
        "front door",
        "back door",
        "phone",
        "washing machine",
        "mailbox",
        "smoke detector",
        "car charger",
    ),
    "button": ("doorbell", "reboot", "garage opener", "coffee", "identify"),
    "climate": ("thermostat", "bedroom thermostat", "heat pump", "air conditioner", "office radiator"),
    "cover": ("left curtain", "garage door", "patio blinds", "kitchen shade", "skylight", "roller shutter", "awning"),
    "fan": ("ceiling fan", "desk fan", "bathroom fan", "tower fan", "extractor fan"),
    "input_boolean": ("guest mode", "vacation mode", "night mode"),
    "lawn_mower": ("lawn robot", "grass robot", "Shaun", "backyard robot"),
    "light": ("floor lamp", "bedside lamp", "desk lamp", "porch light", "chandelier", "reading light", "night light"),
    "lock": ("front door", "back door", "garden gate", "garage side door", "cellar door", "safe"),
    "media_player": ("TV", "kitchen speaker", "soundbar", "stereo", "bedroom radio", "projector"),
    "person": ("Anna", "David", "Mei", "Omar", "Grandma", "Lucas"),
    "scene": ("movie night", "dinner", "good morning", "romantic", "party time", "reading"),
    "script": ("bedtime routine", "leave home", "water the plants", "wake up sequence"),
    "sensor": ("outdoor temperature", "battery level", "power usage", "air quality", "rain gauge", "humidity"),
    "switch": ("coffee maker", "space heater", "kettle", "aquarium pump", "Christmas tree", "dehumidifier"),
    "todo": ("packing", "chores", "weekend", "garden", "homework"),
    "vacuum": ("robot vacuum", "vacuum cleaner", "upstairs vacuum", "dust buster"),
    "valve": ("water valve", "sprinkler valve", "gas valve", "irrigation valve"),
    "weather": ("London", "Berlin", "Boston", "Kyoto", "Lisbon"),
}

WORDS: dict[str, Sequence[str]] = {
    "area": (
        "kitchen",
        "living room",
        "bedroom",
        "bathroom",
        "garage",
        "office",
        "hallway",
        "dining room",
        "basement",
        "attic",
        "nursery",
        "guest room",
        "laundry room",
        "conservatory",
    ),
    "floor": ("ground", "first", "second", "upstairs", "downstairs", "top"),
    "message": ("dinner is ready", "we leave in ten minutes", "the movie is starting", "please come downstairs"),
    "search_query": ("Bohemian Rhapsody", "Miles Davis", "Abbey Road", "The Daily", "Paranoid Android", "Blue Planet"),
    "shopping_list_item": ("milk", "eggs", "olive oil", "toothpaste", "bananas", "dish soap", "coffee beans", "flour"),
    "timer_command": ("turn off the oven", "open the curtains", "turn on the porch light", "lock the front door"),
    "timer_name": ("pizza", "laundry", "egg", "tea", "workout", "bread"),
    "todo_list_item": ("call the dentist", "mow the lawn", "pay the rent", "fix the sink", "book flights"),
    "zone": ("work", "school", "the gym", "the office", "grandma's house"),
}

PERCENTAGES = range(5, 101, 5)

NUMBERS: dict[str, range] = {
    "brightness": PERCENTAGES,
    "color_temperature": range(2000, 6501, 500),
    "fan_speed": PERCENTAGES,
    "position": PERCENTAGES,
    "temperature": range(15, 28),
    "timer_hours": range(2, 13),
    "timer_minutes": range(2, 60),
    "timer_seconds": range(5, 60, 5),
    "volume": PERCENTAGES,
    "volume_step_down": PERCENTAGES,
    "volume_step_up": PERCENTAGES,
}
