def starts_with_the_animal(completions, animal, **kwargs):
    """1 when the answer names the animal at once, less the later it comes, 0 when it never does."""
    answers = [completion[0]["content"].lower() for completion in completions]
    places = [answer.find(name) for answer, name in zip(answers, animal, strict=True)]
    return [0.0 if place < 0 else 1 / (1 + place / 10) for place in places]
