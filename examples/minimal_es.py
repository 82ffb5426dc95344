"""Algorithm 2 of Qiu et al., "Evolution Strategies at Scale" (arXiv 2509.24372), on a model of transformers.

    python examples/minimal_es.py --model HuggingFaceTB/SmolLM2-135M-Instruct --iterations 3

All that it takes of Seedtune is the noise. The digests that it prints are those in the journal of `seedtune train` with
the same settings and `dtype: float32`. (In bfloat16 the weights are the same as well, but the next token is sometimes a
tie within rounding, which two decoders may break differently.)
"""

import argparse

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seedtune.noise.spec import Purpose, digest, member_key, normals, parameter_id

# Short answers: the reward is minus the distance in length from the shortest right answer.
TASK = [
    ("What is the capital of Italy?", "Rome"),
    ("What is 10% of 50?", "5"),
    ("What is the opposite of hot?", "Cold"),
]


def reward(model, tokenizer, question, solution, length):
    """R(theta), of one prompt, decoded greedily."""
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=length, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0]
    completion = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return -float(abs(len(completion) - len(solution)))


@torch.inference_mode()
def evolve(name, *, iterations=3, population=30, sigma=0.001, alpha=None, seed=42, dtype="float32", length=48):
    """Yields the mean reward of the members and the digest of the weights after each iteration."""
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name).eval()
    theta = {key: p.float().numpy().flatten() for key, p in model.named_parameters()}  # in full precision
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, dtype))
    alpha = np.float32(sigma / 2 if alpha is None else alpha)

    def noise(t, n, key):
        """epsilon_n of iteration t for one parameter: the seed gives it again whenever it is needed."""
        return normals(member_key(seed, t, n), parameter_id(key), Purpose.FULL, 0, len(theta[key]))

    for t in range(1, iterations + 1):
        rewards = np.empty((population, len(TASK)))
        for n in range(population):
            for key, p in model.named_parameters():  # perturb, and restore what the member before has changed
                member = theta[key] + np.float32(sigma) * noise(t, n, key)
                p.copy_(torch.from_numpy(member).view_as(p))
            rewards[n] = [reward(model, tokenizer, *row, length) for row in TASK]  # evaluate
        R = rewards.mean(axis=1)
        Z = (R - R.mean()) / (R.std() + 1e-8)  # normalize
        c = (Z / population).astype(np.float32)
        for key in theta:  # update
            g = sum(c[n] * noise(t, n, key) for n in range(population))
            theta[key] = theta[key] + alpha * g
        yield R.mean(), f"{sum(digest(w.view(np.uint32), parameter_id(key)) for key, w in theta.items()) % 2**64:016x}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or a name on the Hugging Face Hub")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--population", type=int, default=30)
    parser.add_argument("--sigma", type=float, default=0.001)
    parser.add_argument("--alpha", type=float, help="learning rate; default: sigma / 2")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--dtype", default="float32", help="of the live weights: float32 or bfloat16")
    parser.add_argument("--length", type=int, default=48, help="new tokens at most")
    settings = vars(parser.parse_args())
    for t, (mean, after) in enumerate(evolve(settings.pop("model"), **settings), start=1):
        print(f"iteration {t}  reward {mean:.4g}  digest {after}", flush=True)
