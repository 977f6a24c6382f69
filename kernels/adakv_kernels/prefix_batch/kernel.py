"""Attention over the page lists of a whole batch, in equal shares for every program.

The work of a layer is a line of chunks: tile after tile, `KEYS` lanes each. Of P programs (no more than
there are chunks) program p takes the chunks [p * total // P, (p + 1) * total // P), whatever tiles they
belong to. A tile that lies in one share is finished there. Of a tile that does not, every program writes
its piece, a partial state: room `2 * p` if the piece is the first of the program's share, else `2 * p + 1`.
The merge finds a tile's pieces by the same arithmetic. Heads of any lengths are balanced, and nothing is
planned on the host.
"""

import triton
import triton.language as tl


@triton.jit
def describe_tiles_kernel(
    p_pages, p_tile_entry, p_tile_head, p_num_tiles, p_chunks, p_tile_lanes, p_tile_length, H,
    CAPACITY: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program per layer: each tile's lanes, and how many chunks lie before it, `[CAPACITY + 1]`."""
    i_l = tl.program_id(0).to(tl.int64)
    o_t = tl.arange(0, CAPACITY)
    m_t = o_t < tl.load(p_num_tiles)
    b_entry = tl.load(p_tile_entry + o_t, mask=m_t, other=0)
    b_head = tl.load(p_tile_head + o_t, mask=m_t, other=0)
    p_indptr = (
        tl.load(p_pages + 2 * b_entry, mask=m_t, other=0).to(tl.pointer_type(tl.int32)) + i_l * H + b_head
    )
    b_start = tl.load(p_indptr, mask=m_t, other=0)
    b_length = tl.load(p_indptr + 1, mask=m_t, other=0) - b_start
    b_lanes = tl.load(p_pages + 2 * b_entry + 1, mask=m_t, other=0)
    tl.store(p_tile_lanes + i_l * CAPACITY + o_t, b_lanes + 4 * b_start.to(tl.int64))  # address of an int32
    tl.store(p_tile_length + i_l * CAPACITY + o_t, b_length)
    p_out = p_chunks + i_l * (CAPACITY + 1)
    tl.store(p_out, 0)
    tl.store(p_out + 1 + o_t, tl.cumsum((b_length + KEYS - 1) // KEYS, 0))


@triton.jit
def find_starts_kernel(p_chunks, p_start_tile, programs, CAPACITY: tl.constexpr, BLOCK: tl.constexpr):
    """The tile in which each program's share of a layer begins, `[layers, programs]`."""
    i_l = tl.program_id(0).to(tl.int64)
    o_p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p_before = p_chunks + i_l * (CAPACITY + 1)
    total = tl.load(p_before + CAPACITY).to(tl.int64)
    b_chunk = o_p.to(tl.int64) * total // tl.maximum(tl.minimum(total, programs), 1)
    b_ends = tl.load(p_before + 1 + tl.arange(0, CAPACITY))
    b_tile = tl.sum((b_ends[None, :] <= b_chunk[:, None]).to(tl.int32), 1)
    tl.store(p_start_tile + i_l * programs + o_p, b_tile, mask=o_p < programs)


@triton.jit
def _attend(
    b_q, p_kv, p_lanes, start, end, value_offset, scale_log2, o_d, m_d,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Online softmax of a tile's queries over the lanes [start, end) of one head; lse in base 2."""
    b_max = tl.full([QUERIES], float("-inf"), tl.float32)
    b_sum = tl.zeros([QUERIES], tl.float32)
    b_out = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    for i_n in range(start, end, KEYS):
        o_n = i_n + tl.arange(0, KEYS)
        m_n = o_n < end
        b_lane = tl.load(p_lanes + o_n, mask=m_n, other=0).to(tl.int64)
        b_k = tl.load(p_kv + b_lane[None, :] * D + o_d[:, None], mask=m_d[:, None] & m_n[None, :], other=0.0)
        b_s = tl.where(m_n[None, :], tl.dot(b_q, b_k) * scale_log2, float("-inf"))  # [QUERIES, KEYS]
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_old = tl.exp2(b_max - b_new)
        p_v = p_kv + (b_lane + value_offset)[:, None] * D + o_d[None, :]
        b_v = tl.load(p_v, mask=m_n[:, None] & m_d[None, :], other=0.0)  # [KEYS, BLOCK_D]
        b_sum = b_sum * b_old + tl.sum(b_p, 1)
        b_out = b_out * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v)
        b_max = b_new
    return b_out / b_sum[:, None], b_max + tl.log2(b_sum)


@triton.jit
def _attend_keys_first(
    b_q, p_kv, p_lanes, start, end, value_offset, scale_log2, o_d, m_d,
    D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """As `_attend` with both products transposed, so that few queries still fill the tensor cores."""
    b_max = tl.full([QUERIES], float("-inf"), tl.float32)
    b_sum = tl.zeros([QUERIES], tl.float32)
    b_out = tl.zeros([BLOCK_D, QUERIES], tl.float32)
    b_qt = tl.trans(b_q)
    for i_n in range(start, end, KEYS):
        o_n = i_n + tl.arange(0, KEYS)
        m_n = o_n < end
        b_lane = tl.load(p_lanes + o_n, mask=m_n, other=0).to(tl.int64)
        p_k = p_kv + b_lane[:, None] * D + o_d[None, :]
        m = m_n[:, None] & m_d[None, :]
        b_k = tl.load(p_k, mask=m, other=0.0)  # [KEYS, BLOCK_D]
        b_s = tl.where(m_n[:, None], tl.dot(b_k, b_qt) * scale_log2, float("-inf"))  # [KEYS, QUERIES]
        b_new = tl.maximum(b_max, tl.max(b_s, 0))
        b_p = tl.exp2(b_s - b_new[None, :])
        b_old = tl.exp2(b_max - b_new)
        b_v = tl.load(p_k + value_offset * D, mask=m, other=0.0)
        b_sum = b_sum * b_old + tl.sum(b_p, 0)
        b_out = b_out * b_old[None, :] + tl.dot(tl.trans(b_v), b_p.to(b_v.dtype))
        b_max = b_new
    return tl.trans(b_out / b_sum[None, :]), b_max + tl.log2(b_sum)


@triton.jit
def _add_state(p_out, p_lse, b_out, b_lse, m_out, m_lse):
    """Merge a tile's state into the states that are there; lse in base 2."""
    b_there = tl.load(p_lse, mask=m_lse, other=0.0)
    b_new = tl.maximum(b_there, b_lse)
    b_old = tl.exp2(b_there - b_new)
    b_add = tl.exp2(b_lse - b_new)
    b_sum = b_old + b_add
    b = tl.load(p_out, mask=m_out, other=0.0).to(tl.float32)
    b = (b * b_old[:, None] + b_out * b_add[:, None]) / b_sum[:, None]
    tl.store(p_out, b.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_lse, b_new + tl.log2(b_sum), mask=m_lse)


@triton.jit
def add_prefix_kernel(
    p_out, p_lse, p_q, p_kv, p_chunks, p_start_tile, p_tile_lanes, p_tile_length, p_tile_head, p_tile_first,
    p_tile_count, p_tokens, p_piece_out, p_piece_lse, value_offset, scale_log2,
    stride_q_token, stride_q_head, stride_token, stride_head, stride_lse,
    G: tl.constexpr, D: tl.constexpr, CAPACITY: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr, KEYS_FIRST: tl.constexpr,
):  # fmt: skip
    """Finish the tiles of this program's share, and write its pieces of those that it shares with others."""
    i_p = tl.program_id(0).to(tl.int64)
    total = tl.load(p_chunks + CAPACITY).to(tl.int64)
    programs = tl.minimum(total, tl.num_programs(0))
    if i_p >= programs:
        return
    share = (i_p * total // programs).to(tl.int32)
    stop = ((i_p + 1) * total // programs).to(tl.int32)
    o_m = tl.arange(0, QUERIES)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    tile = tl.load(p_start_tile + i_p)
    chunk = share
    while chunk < stop:
        first = tl.load(p_chunks + tile)
        tile_end = tl.load(p_chunks + tile + 1)
        last = tl.minimum(tile_end, stop)
        if last > chunk:
            head = tl.load(p_tile_head + tile)
            p_lanes = tl.load(p_tile_lanes + tile).to(tl.pointer_type(tl.int32))
            length = tl.load(p_tile_length + tile)
            m_m = o_m // G < tl.load(p_tile_count + tile)
            m_o = m_m[:, None] & m_d[None, :]
            b_token = tl.load(p_tokens + tl.load(p_tile_first + tile) + o_m // G, mask=m_m, other=0).to(
                tl.int64
            )
            b_head = head * G + o_m % G
            p_row = p_q + b_token * stride_q_token + b_head * stride_q_head
            b_q = tl.load(p_row[:, None] + o_d[None, :], mask=m_o, other=0.0)
            start = (chunk - first) * KEYS
            end = tl.minimum((last - first) * KEYS, length)
            if KEYS_FIRST:
                b_out, b_lse = _attend_keys_first(
                    b_q,
                    p_kv,
                    p_lanes,
                    start,
                    end,
                    value_offset,
                    scale_log2,
                    o_d,
                    m_d,
                    D,
                    QUERIES,
                    KEYS,
                    BLOCK_D,
                )
            else:
                b_out, b_lse = _attend(
                    b_q,
                    p_kv,
                    p_lanes,
                    start,
                    end,
                    value_offset,
                    scale_log2,
                    o_d,
                    m_d,
                    D,
                    QUERIES,
                    KEYS,
                    BLOCK_D,
                )
            if (chunk == first) & (last == tile_end):
                p_o = p_out + (b_token * stride_token + b_head * stride_head)[:, None] + o_d[None, :]
                _add_state(p_o, p_lse + b_token * stride_lse + b_head, b_out, b_lse, m_o, m_m)
            else:
                o_piece = (2 * i_p + (chunk > share).to(tl.int64)) * QUERIES + o_m
                tl.store(p_piece_out + o_piece[:, None] * D + o_d[None, :], b_out, mask=m_o)
                tl.store(p_piece_lse + o_piece, b_lse, mask=m_m)
            chunk = last
        tile += 1


@triton.jit
def merge_pieces_kernel(
    p_out, p_lse, p_row_tile, p_row_stride, p_row_place, p_chunks, p_piece_out, p_piece_lse, programs,
    stride_token, stride_head, stride_lse,
    G: tl.constexpr, D: tl.constexpr, CAPACITY: tl.constexpr, QUERIES: tl.constexpr,
    PIECES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add the pieces of one query row and head to its suffix state, in place; lse in base 2."""
    i_t = tl.program_id(0).to(tl.int64)
    i_q = tl.program_id(1)
    row_tile = tl.load(p_row_tile + i_t)
    if row_tile < 0:
        return
    total = tl.load(p_chunks + CAPACITY).to(tl.int64)
    tile = row_tile + (i_q // G) * tl.load(p_row_stride + i_t)
    first = tl.load(p_chunks + tile).to(tl.int64)
    last = tl.load(p_chunks + tile + 1).to(tl.int64)
    if last == first:
        return
    shares = tl.minimum(total, programs)
    start = ((first + 1) * shares - 1) // total  # the programs that worked on this tile
    stop = (last * shares - 1) // total + 1
    if stop - start == 1:
        return  # one program did, and finished it
    row = tl.load(p_row_place + i_t) * G + i_q % G
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    p_state = p_lse + i_t * stride_lse + i_q
    p_o = p_out + i_t * stride_token + i_q * stride_head + o_d
    top = tl.load(p_state)
    weight = 1.0
    b_out = tl.load(p_o, mask=m_d, other=0.0).to(tl.float32)
    for i_p in range(start, stop, PIECES):
        o_p = i_p + tl.arange(0, PIECES)
        m_p = o_p < stop
        b_later = (o_p * total // shares < first).to(tl.int64)  # the tile began within the share
        o_piece = (2 * o_p + b_later) * QUERIES + row
        b_lse = tl.load(p_piece_lse + o_piece, mask=m_p, other=float("-inf"))
        p_piece = p_piece_out + o_piece[:, None] * D + o_d[None, :]
        b_piece = tl.load(p_piece, mask=m_p[:, None] & m_d[None, :], other=0.0)  # [PIECES, BLOCK_D]
        new = tl.maximum(top, tl.max(b_lse, 0))
        b_add = tl.exp2(b_lse - new)
        old = tl.exp2(top - new)
        weight = weight * old + tl.sum(b_add, 0)
        b_out = b_out * old + tl.sum(b_piece * b_add[:, None], 0)
        top = new
    tl.store(p_o, (b_out / weight).to(p_out.dtype.element_ty), mask=m_d)
    tl.store(p_state, top + tl.log2(weight))
