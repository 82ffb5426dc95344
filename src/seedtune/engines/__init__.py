"""A replica that answers: it holds the centre, becomes a member, generates, and applies updates."""
