"""Request → stages (text, sample, decode) → pictures: the room that knows all the others."""
