"""What `snowball check` judges: each guarantee of a built model, measured again."""
