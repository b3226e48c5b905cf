"""The known-answer suite: models whose every number is known, and the judging of what tools say."""
