def starts_with_the_animal(completions, animal, **kwargs):
    """1 when the completion begins with the animal, less the later it is named, 0 when it is not named."""
    texts = [completion[0]["content"].lower() for completion in completions]
    places = [text.find(name) for text, name in zip(texts, animal, strict=True)]
    return [0.0 if place < 0 else 1 / (1 + place / 10) for place in places]
