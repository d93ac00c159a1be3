"""Score distillation itself: objectives, the scores that they ask for, the train step and what stands beside it."""
