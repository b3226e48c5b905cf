(** Sizes of switch and filler, and angles, that give the target the score epsilon, every other layer
    a larger one, and (for epsilon <= 1/2) a divergence that grows. *)
From Coq Require Import Reals Lra Lia List Arith Psatz.
From Snowball Require Import Statement Vectors Kernel.
Open Scope R_scope.

(** The product of the streams before and after layer [l], and its score if something orthogonal of
    squared norm [f] is added after it. *)
Definition step (U : R) (sw ang : nat -> R) (l : nat) : R := 2 + U * U * cos (ang l) + sw l * sw (S l).
Definition step_score (U : R) (sw ang : nat -> R) (l : nat) (f : R) : R :=
  1 - step U sw ang l / (sqrt (U * U + 2 + sw l * sw l) * sqrt (U * U + 2 + sw (S l) * sw (S l) + f)).

Record schedule (epsilon : R) (target last : nat) (U phi : R) (sw ang : nat -> R) : Prop := {
  room : 0 < phi;
  switched : forall l, sw l <> 0;
  flips : sw (S target) = - sw target;
  target_score : step_score U sw ang target 0 = epsilon;
  other_scores : forall l, (l <= last)%nat -> l <> target -> forall f, 0 <= f <= phi
    -> epsilon < step_score U sw ang l f;
  grows : epsilon <= 1 / 2 -> cos (ang target) = 1
    /\ (forall k, (target < k < last)%nat -> sw k * sw k < sw (S k) * sw (S k))
    /\ sw last * sw last + phi <= sw (S last) * sw (S last)
    /\ sw last * sw last < U * U + 2
    /\ U * U + 2 + phi < 15 * (sw (S last) * sw (S last)) }.

Lemma sqrt_product x f : 0 < x -> 0 <= f -> sqrt x * sqrt (x + f) <= x + f / 2.
Proof.
  intros Hx Hf. rewrite <- sqrt_mult by lra. rewrite <- (sqrt_square (x + f / 2)) by lra. apply sqrt_le_1_alt.
  nra.
Qed.

(** lem:target-score and lem:other-scores for epsilon <= 1/2: the target only flips the switch, every
    other layer scores 1, and the switch grows from h to 2. *)
Lemma small_epsilon epsilon target last : 0 < epsilon <= 1 / 2 -> (target < last)%nat ->
  exists U phi sw ang, schedule epsilon target last U phi sw ang.
Proof.
  intros He Hl. set (h := sqrt (11 * epsilon / (2 - epsilon))).
  assert (E0 : 0 < 11 * epsilon / (2 - epsilon)) by (apply Rdiv_lt_0_compat; lra).
  assert (h0 : 0 < h) by (apply sqrt_lt_R0; auto).
  assert (hh : h * h = 11 * epsilon / (2 - epsilon)) by (apply sqrt_sqrt; lra).
  assert (h1 : h * h <= 11 / 3).
  { rewrite hh. apply (Rmult_le_reg_r (2 - epsilon)); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra.
    lra. }
  assert (h2 : h < 2) by nra.
  set (sw := fun l => if (l <=? target)%nat then - h else h + (2 - h) * (INR (l - S target) / INR
    (last - target))).
  set (ang := fun l => if (l =? target)%nat then 0 else acos (- (2 + sw l * sw (S l)) / 9)).
  assert (span : 0 < INR (last - target)) by (apply lt_0_INR; lia).
  pose proof (Rinv_0_lt_compat _ span) as span'.
  assert (early : forall l, (l <= target)%nat -> sw l = - h).
  { intros l H. unfold sw. destruct (Nat.leb_spec l target); [auto|lia]. }
  assert (late : forall l, (target < l <= S last)%nat -> h <= sw l <= 2).
  { intros l H. unfold sw. destruct (Nat.leb_spec l target); [lia|].
    assert (0 <= INR (l - S target) / INR (last - target) <= 1); [|nra]. split.
    - unfold Rdiv. pose proof (pos_INR (l - S target)). nra.
    - apply (Rmult_le_reg_r (INR (last - target))); auto. unfold Rdiv.
      rewrite Rmult_assoc, Rinv_l, Rmult_1_l, Rmult_1_r by lra.
      apply le_INR; lia. }
  assert (rises : forall l, (target < l)%nat -> sw l < sw (S l)).
  { intros l H. unfold sw. destruct (Nat.leb_spec l target); [lia|].
    destruct (Nat.leb_spec (S l) target); [lia|].
    replace (S l - S target)%nat with (S (l - S target)) by lia. rewrite S_INR. unfold Rdiv. nra. }
  assert (ends : sw (S last) = 2).
  { unfold sw. destruct (Nat.leb_spec (S last) target); [lia|].
    replace (S last - S target)%nat with (last - target)%nat by lia. field. lra. }
  assert (begins : sw (S target) = h).
  { unfold sw. destruct (Nat.leb_spec (S target) target); [lia|].
    replace (S target - S target)%nat with 0%nat by lia. simpl. field. lra. }
  exists 3, (2 * 2 - sw last * sw last), sw, ang.
  pose proof (late last ltac:(lia)) as Ll. pose proof (rises last Hl) as Rl. rewrite ends in Rl.
  constructor.
  - nra.
  - intros l. unfold sw. destruct (Nat.leb_spec l target); [lra|]. pose proof (pos_INR (l - S target)).
    unfold Rdiv.
    assert (0 <= (2 - h) * (INR (l - S target) * / INR (last - target))) by (apply Rmult_le_pos;
      [lra|apply Rmult_le_pos; lra]). lra.
  - rewrite begins, early by lia. ring.
  - unfold step_score, step, ang. rewrite Nat.eqb_refl, begins, early, cos_0 by lia.
    replace (3 * 3 + 2 + - h * - h) with (3 * 3 + 2 + h * h) by ring. rewrite Rplus_0_r, sqrt_sqrt by nra.
    replace (- h * h) with (- (h * h)) by ring.
    rewrite hh. field. lra.
  - intros l H Hne f Hf. unfold step_score, step, ang. destruct (Nat.eqb_spec l target); [congruence|].
    assert (B : 0 <= sw l * sw (S l) <= 4).
    { destruct (Nat.lt_ge_cases l target).
      - rewrite !early by lia. nra.
      - pose proof (late l ltac:(lia)). pose proof (late (S l) ltac:(lia)). nra. }
    rewrite cos_acos by lra. replace (2 + 3 * 3 * (- (2 + sw l * sw (S l)) / 9) + sw l * sw
      (S l)) with 0 by field.
    unfold Rdiv. rewrite Rmult_0_l. lra.
  - intros _. repeat split.
    + unfold ang. rewrite Nat.eqb_refl. apply cos_0.
    + intros k Hk. pose proof (rises k ltac:(lia)). pose proof (late k ltac:(lia)). nra.
    + rewrite ends. lra.
    + nra.
    + rewrite ends. nra.
Qed.

(** lem:target-score and lem:other-scores for epsilon > 1/2: the filler takes nearly all of the norm,
    the switch keeps its size, and every other layer scores 1 + epsilon/2. *)
Lemma large_epsilon epsilon target last : 1 / 2 < epsilon < 2 ->
  exists U phi sw ang, schedule epsilon target last U phi sw ang.
Proof.
  intros He. set (q := 1 - epsilon / 2). assert (q0 : 0 < q < 3 / 4) by (unfold q; lra).
  set (C := 16 / q). assert (qC : q * C = 16) by (unfold C; field; lra). assert (C0 : 21 < C) by nra.
  set (h := sqrt 2). assert (hh : h * h = 2) by (apply sqrt_sqrt; lra).
  assert (UU : sqrt (C - 2) * sqrt (C - 2) = C - 2) by (apply sqrt_sqrt; lra).
  set (sw := fun l => if (l <=? target)%nat then - h else h).
  assert (sq : forall l, sw l * sw l = 2) by (intros l; unfold sw; destruct (l <=? target)%nat; nra).
  exists (sqrt (C - 2)), 1, sw, (fun l => if (l =? target)%nat then acos ((2 * q - 1) * (C + 2) / (C - 2))
    else acos (- ((1 - q) * (C + 2) + 4) / (C - 2))).
  assert (div : forall x, - (C - 2) <= x <= C - 2 -> - 1 <= x / (C - 2) <= 1).
  { intros x Hx. split; apply (Rmult_le_reg_r (C - 2)); try lra; unfold Rdiv;
      rewrite Rmult_assoc, Rinv_l by lra; lra. }
  constructor.
  - lra.
  - intros l E. pose proof (sq l). rewrite E in H. lra.
  - unfold sw. destruct (Nat.leb_spec (S target) target); [lia|]. rewrite Nat.leb_refl. ring.
  - unfold step_score, step. rewrite Nat.eqb_refl, cos_acos by (apply div; nra). rewrite UU, !sq, Rplus_0_r.
    replace (sw target * sw (S target)) with (- 2).
    + rewrite sqrt_sqrt by lra. replace epsilon with (2 - 2 * q) by (unfold q; lra). field. lra.
    + unfold sw. rewrite Nat.leb_refl. destruct (Nat.leb_spec (S target) target); [lia|nra].
  - intros l _ Hne f Hf. unfold step_score, step. destruct (Nat.eqb_spec l target); [congruence|].
    rewrite cos_acos by (apply div; nra). rewrite UU, !sq.
    replace (sw l * sw (S l)) with 2.
    + replace (2 + (C - 2) * (- ((1 - q) * (C + 2) + 4) / (C - 2)) + 2) with (- ((1 - q) * (C + 2))) by (field;
        lra).
      replace (C - 2 + 2 + 2) with (C + 2) by ring.
      pose proof (sqrt_product (C + 2) f ltac:(lra) ltac:(lra)) as S.
      pose proof (sqrt_lt_R0 (C + 2) ltac:(lra)). pose proof (sqrt_lt_R0 (C + 2 + f) ltac:(lra)).
      set (z := sqrt (C + 2) * sqrt (C + 2 + f)) in *. assert (z0 : 0 < z) by (unfold z; nra).
      replace epsilon with (2 - 2 * q) by (unfold q; lra). apply (Rmult_lt_reg_r z); auto.
      replace ((1 - - ((1 - q) * (C + 2)) / z) * z) with (z + (1 - q) * (C + 2)) by (field; lra).
      destruct (Rle_dec (1 - 2 * q) 0); nra.
    + unfold sw. destruct (Nat.leb_spec l target), (Nat.leb_spec (S l) target); try lia; nra.
  - intros; lra.
Qed.

Lemma schedule_exists epsilon target last : 0 < epsilon < 2 -> (target < last)%nat ->
  exists U phi sw ang, schedule epsilon target last U phi sw ang.
Proof.
  intros He Hl. destruct (Rle_dec epsilon (1 / 2)).
  - apply small_epsilon; auto; lra.
  - apply large_epsilon; lra.
Qed.
