"""A script for TRL's GRPO. `grpo_after.py` is the same for Evolution Strategies: two lines differ."""

from datasets import Dataset
from trl import GRPOConfig as Config
from trl import GRPOTrainer as Trainer


def short(completions, **kwargs):
    return [-float(len(completion[0]["content"])) for completion in completions]


questions = ["What is the capital of Peru?", "Which animal barks?", "What is 3 times 4?", "Is ice cold?"]
trainer = Trainer(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    reward_funcs=short,
    args=Config(output_dir="runs/short", max_steps=20, max_completion_length=64, save_strategy="no"),
    train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions]),
)
trainer.train()
