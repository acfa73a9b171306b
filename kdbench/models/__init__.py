"""The weights room: a model reference to weights, weights to text, and students made from teachers.

local_weights("smollm2") -> a folder with config.json, model.safetensors and tokenizer.json
load_model("smollm2")    -> the transformers model, in eval mode
make_student(...)        -> a folder of the same form: pruned by depth and width, from scratch or from
                            weights, with all of the vocabulary or what the data uses
possible_students(...)   -> what could be made from a teacher, and how large it would be
Conversation(...)        -> a chat with any of them
"""
