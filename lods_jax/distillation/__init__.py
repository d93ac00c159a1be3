"""Score distillation itself: objectives, scores, the train step, regularizers and prompts."""
