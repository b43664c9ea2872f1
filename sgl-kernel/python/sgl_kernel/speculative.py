"""Token trees and accepted tokens of speculative decoding.

Shapes: ``bs`` requests, each with a tree of ``n`` draft tokens whose node 0 is the root (the last
accepted token); node ``i`` of request ``b`` has the flat index ``b * n + i``. A tree is given by
each node's first child and next sibling (-1: none).
"""

from __future__ import annotations

from typing import NoReturn

import torch

from sgl_kernel.kv_slots import segments

_FULL_MASK, _QLEN_ONLY, _QLEN_ONLY_BITPACKING = range(3)
"""Values of SGLang's ``TreeMaskMode``."""


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
) -> None:
    """Write each request's last accepted token into ``bonus_tokens`` [bs].

    ``accept_tokens`` [bs * accept_stride]; ``accept_lens`` [bs] counts the bonus token.
    """
    lens = accept_lens.to(torch.int64)
    last = torch.arange(lens.numel()) * accept_stride + lens - 1
    bonus_tokens[: lens.numel()] = accept_tokens.reshape(-1)[last].to(bonus_tokens.dtype)


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor,
    out_cache_loc: torch.Tensor,
    accept_out_cache_loc: torch.Tensor,
) -> None:
    """Gather the KV slots of the accepted tokens (index -1: none) to the front of
    ``accept_out_cache_loc``, in order."""
    accepted = accept_index.reshape(-1)
    accepted = accepted[accepted > -1].to(torch.int64)
    accept_out_cache_loc[: accepted.numel()] = out_cache_loc[accepted]


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None = None,
) -> None:
    """Shift each request's tokens left by one, in place, and append its new token.

    The new token ``topk_index`` [bs] goes to the segment's last place, or to the flat position
    ``select_index`` [bs] when given. Empty segments are left alone.
    """
    start = extend_start_loc.to(torch.int64)
    lens = extend_seq_lens.to(torch.int64)
    owner, offset = segments((lens - 1).clamp(min=0))
    place = start[owner] + offset
    input_ids[place] = input_ids[place + 1]
    some = lens > 0
    last = start + lens - 1 if select_index is None else select_index.to(torch.int64)
    input_ids[last[some]] = topk_index.reshape(-1)[: lens.numel()][some].to(input_ids.dtype)


def _parents(parent_list: torch.Tensor, selected: torch.Tensor, topk: int) -> torch.Tensor:
    """Return each node's parent node [bs, n] (root: -1; a parent that was not selected: -1)."""
    bs, drafts = selected.shape
    parents = torch.full((bs, drafts + 1), -1, dtype=torch.int64)
    if bs == 0 or drafts == 0:
        return parents
    beam = selected // topk
    # A tree of depth one has an empty parent list; only beam 0, the root, can occur in it.
    width = max(parent_list.shape[-1], 1)
    known = parent_list if parent_list.shape[-1] else parent_list.new_zeros(bs, 1)
    token = torch.gather(known, 1, beam.clamp(max=width - 1))
    same = token[:, :, None] == selected[:, None, :]
    found = torch.where(same.any(-1), same.to(torch.int8).argmax(-1) + 1, -1)
    parents[:, 1:] = torch.where(beam == 0, 0, found)
    return parents


def _links(parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return first child and next sibling [bs, n] from parents [bs, n]; -1 where there is none."""
    n = parents.shape[1]
    node = torch.arange(n)
    child_of = parents[:, None, :] == node[:, None]
    first_child = torch.where(child_of.any(-1), child_of.to(torch.int8).argmax(-1), -1)
    siblings = (parents[:, :, None] == parents[:, None, :]) & (node[None, :] > node[:, None])
    siblings &= (parents >= 0)[:, :, None]
    next_sibling = torch.where(siblings.any(-1), siblings.to(torch.int8).argmax(-1), -1)
    return first_child, next_sibling


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Turn EAGLE's selected draft tokens into a token tree: links, positions and attention mask.

    Args:
        parent_list: draft index of each beam's parent [bs, beams] (entry 0: the root).
        selected_index: draft index of nodes 1 to n - 1 [bs, n - 1].
        verified_seq_len: tokens before the tree [bs].
        tree_mask: written in place, flat; mode FULL_MASK: rows [seq_len + n] of every request,
            of which the last n columns are written; mode QLEN_ONLY: [bs * n * n].
        positions: written, [bs * n].
        retrieve_index, retrieve_next_token, retrieve_next_sibling: written, [bs, n].

    Raises:
        NotImplementedError: ``tree_mask_mode`` is QLEN_ONLY_BITPACKING (a GPU kernel's format).
    """
    if int(tree_mask_mode) not in (_FULL_MASK, _QLEN_ONLY):
        raise NotImplementedError(
            "build_tree_kernel_efficient_cpu: tree_mask_mode QLEN_ONLY_BITPACKING is not supported "
            "on the CPU; use FULL_MASK or QLEN_ONLY"
        )
    bs, n = verified_seq_len.numel(), draft_token_num
    lens = verified_seq_len.to(torch.int64)
    parents = _parents(parent_list.reshape(bs, -1), selected_index[:, : n - 1], topk)

    retrieve_index.copy_(torch.arange(bs * n).view(bs, n))
    first_child, next_sibling = _links(parents)
    retrieve_next_token.copy_(first_child)
    retrieve_next_sibling.copy_(next_sibling)

    # Walk from every node towards the root at once, at most `depth` steps as the GPU kernel does.
    sees = torch.zeros(bs, n, n + 1, dtype=torch.bool)
    sees[:, :, 0] = True
    steps = torch.zeros(bs, n, dtype=torch.int64)
    here = torch.arange(n).repeat(bs, 1)
    for _ in range(depth):
        walking = here > 0
        steps += walking
        sees.scatter_(2, torch.where(walking, here, n)[:, :, None], True)
        here = torch.where(walking, torch.gather(parents, 1, here.clamp(min=0)), here)
    positions.copy_((lens[:, None] + steps).view(-1).to(positions.dtype))

    rows = torch.arange(n)
    if int(tree_mask_mode) == _FULL_MASK:
        base = torch.arange(bs) * n * n + (torch.cumsum(lens, 0) - lens) * n
        first = base[:, None] + (lens + n)[:, None] * rows + lens[:, None]
    else:
        first = torch.arange(bs)[:, None] * n * n + n * rows
    cells = first[:, :, None] + torch.arange(n)
    tree_mask.view(-1)[cells.view(-1)] = sees[:, :, :n].reshape(-1).to(tree_mask.dtype)


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Write positions and links of token trees given by their masks.

    ``tree_mask`` [bs * n * n]: node j is an ancestor of node i (or i itself) where [b, i, j] is
    true; a node's parent is its nearest ancestor. Outputs as `build_tree_kernel_efficient_cpu`.
    """
    bs, n = batch_size, draft_token_num
    node = torch.arange(n)
    above = tree_mask.reshape(bs, n, n).to(torch.bool) & (node[None, :] < node[:, None])
    parents = torch.where(above, node, -1).amax(-1)
    first_child, next_sibling = _links(parents)
    retrieve_index.copy_(torch.arange(bs * n).view_as(retrieve_index))
    retrieve_next_token.copy_(first_child.view_as(retrieve_next_token))
    retrieve_next_sibling.copy_(next_sibling.view_as(retrieve_next_sibling))
    depth = above.sum(-1) + verified_seq_len.to(torch.int64)[:, None]
    positions.copy_(depth.view_as(positions).to(positions.dtype))


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Follow each tree from the root along the tokens the target model chose itself.

    Args:
        predicts: written at the flat index of every node passed: the target's token, [bs * n].
        accept_index: written: flat index of the accepted nodes, the root first, [bs, depth].
        accept_token_num: written: accepted nodes without the root [bs].
        candidates: draft token of each node [bs, n].
        retrive_index, retrive_next_token, retrive_next_sibling: flat index, first child and next
            sibling [bs, n] (spelt as SGLang's call spells them).
        target_predict: the target's greedy token after each node [bs, n].
    """
    levels = accept_index.shape[1]
    draft, target = candidates.tolist(), target_predict.reshape(-1).tolist()
    flat = retrive_index.tolist()
    child, sibling = retrive_next_token.tolist(), retrive_next_sibling.tolist()
    flat_predicts = predicts.view(-1)
    for b in range(candidates.shape[0]):
        path, node = [0], 0
        while len(path) < levels:
            wanted = target[flat[b][path[-1]]]
            node = child[b][path[-1]]
            while node != -1 and draft[b][node] != wanted:
                node = sibling[b][node]
            if node == -1:
                break
            path.append(node)
        places = [flat[b][i] for i in path]
        accept_index[b, : len(path)] = torch.tensor(places, dtype=accept_index.dtype)
        accept_token_num[b] = len(path) - 1
        flat_predicts[places] = torch.tensor([target[p] for p in places], dtype=predicts.dtype)


def build_draft_decode_metadata_cpu(*args: object, **kwargs: object) -> NoReturn:
    """Refuse: only SGLang's AMX attention backend calls it.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "build_draft_decode_metadata_cpu belongs to --attention-backend intel_amx, which needs "
        "Intel's AMX build of sgl_kernel; use --attention-backend blend_cpu or torch_native, "
        "without multi-step speculative decoding"
    )
