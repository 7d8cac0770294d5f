"""Language models of mamba_ssm: training, checkpoints, generation, packed sequences."""

import argparse
import tempfile

import torch
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from mamba_ssm.modules.mamba2 import Mamba2
from torch.nn import functional as F

TEXT = "the state forgets what it read, and what it read it will not read again. "
MAMBA2 = {"layer": "Mamba2", "d_state": 16, "headdim": 16, "chunk_size": 32}


def train(config, device, steps):
    data = torch.tensor(list(TEXT.encode() * 8), device=device)
    model = MambaLMHeadModel(config, device=device)
    decayed = [p for p in model.parameters() if not getattr(p, "_no_weight_decay", False)]
    others = [p for p in model.parameters() if getattr(p, "_no_weight_decay", False)]
    assert others  # A_log and D say so
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=8e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - 65, (8,), device=device)
        tokens = torch.stack([data[i : i + 65] for i in starts])
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def check_generation(model, device):
    """Greedy generation with a cache is the argmax of the whole sequence, and knows the text."""
    prompt = torch.tensor([list(TEXT[:20].encode())], device=device)
    out = model.generate(
        input_ids=prompt,
        max_length=60,
        cg=torch.device(device).type == "cuda",
        return_dict_in_generate=True,
        output_scores=True,
        top_k=1,
    )
    tokens = out.sequences
    with torch.no_grad():
        logits = model(tokens).logits[:, 19:-1]
    scores = torch.stack(out.scores, dim=1)
    assert tokens.shape == (1, 60) and torch.equal(logits.argmax(-1), tokens[:, 20:])
    assert (scores - logits).abs().max() < 1e-3 * logits.abs().max()
    return bytes(tokens[0].tolist()).decode(errors="replace")


def check_checkpoint(model, config, device):
    """What `save_pretrained` writes loads strictly."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = torch.load(f"{folder}/pytorch_model.bin", map_location=device, weights_only=True)
    again = MambaLMHeadModel(config, device=device).eval()
    again.load_state_dict(state, strict=True)
    tokens = torch.arange(65, 80, device=device)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def check_packing(device):
    """Three sequences in one row give what each gives alone."""
    layer = Mamba2(32, layer_idx=0, d_state=16, headdim=16, chunk_size=8, device=device).eval()
    lengths = [7, 20, 5]
    starts = torch.tensor([0, *lengths], device=device).cumsum(0)
    seq_idx = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    seq_idx = seq_idx.to(device=device, dtype=torch.int32)[None]
    u = torch.randn(1, sum(lengths), 32, device=device)
    alone = torch.cat([layer(part) for part in u.split(lengths, dim=1)], dim=1)
    packed = layer(u, seq_idx=seq_idx)
    assert (packed - alone).abs().max() < 1e-5, (packed - alone).abs().max()
    packed.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert int(starts[-1]) == u.shape[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    for name, ssm_cfg in (("Mamba", {"layer": "Mamba1"}), ("Mamba-2", MAMBA2)):
        torch.manual_seed(0)
        config = MambaConfig(d_model=32, n_layer=2, vocab_size=128, ssm_cfg=ssm_cfg)
        model, losses = train(config, options.device, options.steps)
        text = check_generation(model, options.device)
        check_checkpoint(model, config, options.device)
        print(f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f}: {text}")
        assert losses[-1] < losses[0] / 2
    check_packing(options.device)


if __name__ == "__main__":
    main()
