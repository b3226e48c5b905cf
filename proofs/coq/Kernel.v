(** RoPE tells all distances apart: the turns of the first two planes are never both whole at once.
    Softmax copies; two sequences that begin with BOS differ at a distance from their ends. *)
From Coq Require Import Reals Lra Lia List Arith Psatz ZArith.
Import ListNotations.
From Snowball Require Import Statement Vectors.
Open Scope R_scope.

(** * The frequency theta^(-1/half) is irrational *)
Lemma no_root a b h theta : (0 < b)%nat -> (2 <= theta < 2 ^ h)%nat -> (a ^ h)%nat <> (theta * b ^ h)%nat.
Proof.
  intros Hb Ht E. set (g := Nat.gcd a b).
  assert (Hg : g <> 0%nat) by (unfold g; intros G; apply Nat.gcd_eq_0 in G; lia).
  destruct (Nat.gcd_divide_l a b) as [a' Ea]. destruct (Nat.gcd_divide_r a b) as [b' Eb]. fold g in Ea, Eb.
  assert (Co : Nat.gcd b' a' = 1%nat).
  { pose proof (Nat.gcd_div_gcd a b g Hg eq_refl) as G.
    rewrite Ea, Eb, !Nat.div_mul, Nat.gcd_comm in G by auto. exact G. }
  rewrite Ea, Eb, !Nat.pow_mul_l, Nat.mul_assoc in E.
  apply Nat.mul_cancel_r in E; [|apply Nat.pow_nonzero; auto].
  assert (Hb' : (0 < b')%nat) by (destruct b'; lia).
  assert (D : forall k, Nat.divide b' (a' ^ k) -> Nat.divide b' 1).
  { induction k; simpl; auto. intros D. apply IHk. apply (Nat.gauss _ _ _ D Co). }
  assert (h <> 0%nat) by (intros ->; simpl in Ht; lia).
  assert (B : b' = 1%nat).
  { apply Nat.divide_1_r. apply (D h). rewrite E. apply Nat.divide_mul_r.
    exists (b' ^ (h - 1))%nat. replace h with (S (h - 1)) at 1 by lia. simpl; lia. }
  rewrite B, Nat.pow_1_l in E. destruct (le_lt_dec a' 1) as [H1|H1].
  - destruct a' as [|[|]]; [rewrite Nat.pow_0_l in E by auto|rewrite Nat.pow_1_l in E|]; lia.
  - pose proof (Nat.pow_le_mono_l 2 a' h ltac:(lia)). lia.
Qed.

Definition slow (theta half : nat) : R := Rpower (INR theta) (- (INR 1 / INR half)).
Lemma slow_pos theta half : 0 < slow theta half.
Proof. apply exp_pos. Qed.
Lemma slow_power theta half : (2 <= theta < 2 ^ half)%nat -> INR theta * slow theta half ^ half = 1.
Proof.
  intros H. assert (h0 : half <> 0%nat) by (intros ->; simpl in H; lia).
  assert (0 < INR theta) by (apply lt_0_INR; lia). assert (INR half <> 0) by (apply not_0_INR; auto).
  rewrite <- Rpower_pow by apply slow_pos. unfold slow. rewrite Rpower_mult.
  replace (- (INR 1 / INR half) * INR half) with (- (1)) by (simpl; field; auto).
  rewrite Rpower_Ropp, Rpower_1 by auto. field; lra.
Qed.
Lemma slow_irrational theta half (a b : nat) : (2 <= theta < 2 ^ half)%nat -> (0 < a)%nat
  -> INR a * slow theta half <> INR b.
Proof.
  intros H Ha E. pose proof (slow_pos theta half) as F. pose proof (lt_0_INR a Ha).
  assert (Hb : (0 < b)%nat) by (apply INR_lt; simpl; nra).
  apply (no_root a b half theta Hb H). apply INR_eq. rewrite mult_INR, !pow_INR, <- E, Rpow_mult_distr.
  replace (INR theta * (INR a ^ half * slow theta half ^ half)) with (INR a ^ half *
    (INR theta * slow theta half ^ half)) by ring.
  rewrite slow_power by auto. ring.
Qed.

Lemma cos_one x : cos x = 1 -> exists k : Z, x = 2 * PI * IZR k.
Proof.
  intros H. assert (S : sin (x / 2) = 0).
  { replace x with (2 * (x / 2)) in H by field. rewrite cos_2a_sin in H. nra. }
  apply sin_eq_0_0 in S. destruct S as [k E]. exists k. lra.
Qed.
(** lem:kernel *)
Lemma kernel_peak theta half (x : Z) : (2 <= theta < 2 ^ half)%nat -> x <> 0%Z ->
  cos (IZR x) + cos (IZR x * slow theta half) < 2.
Proof.
  intros H Hx. pose proof (COS_bound (IZR x)). pose proof (COS_bound (IZR x * slow theta half)).
  destruct (Req_dec (cos (IZR x)) 1) as [C1|]; [|lra].
  destruct (Req_dec (cos (IZR x * slow theta half)) 1) as [C2|]; [|lra].
  destruct (cos_one _ C1) as [k E1]. destruct (cos_one _ C2) as [m E2]. exfalso.
  pose proof PI_RGT_0. pose proof (slow_pos theta half).
  assert (E : IZR k * slow theta half = IZR m) by (rewrite E1 in E2; apply (Rmult_eq_reg_l (2 * PI)); lra).
  apply (slow_irrational theta half (Z.abs_nat k) (Z.abs_nat m) H).
  - assert (k <> 0%Z) by (intros ->; rewrite Rmult_0_r in E1; apply Hx, eq_IZR; auto). lia.
  - rewrite !INR_IZR_INZ, !Zabs2Nat.id_abs, !abs_IZR, <- E, Rabs_mult, (Rabs_right (slow _ _)) by lra.
    reflexivity.
Qed.
Lemma kernel_gap theta half N : (2 <= theta < 2 ^ half)%nat -> exists gap, 0 < gap /\
  forall x : Z, x <> 0%Z -> (Z.abs x <= Z.of_nat N)%Z -> cos (IZR x) + cos (IZR x * slow theta half) <= 2 - gap.
Proof.
  intros H. induction N as [|N [g [Hg IH]]].
  - exists 1. split; [lra|]. intros; lia.
  - pose proof (kernel_peak theta half (Z.of_nat (S N)) H ltac:(lia)) as P. set (x := Z.of_nat (S N)) in *.
    exists (Rmin g (2 - (cos (IZR x) + cos (IZR x * slow theta half)))).
    split; [apply Rmin_pos; lra|]. intros y Hy B.
    pose proof (Rmin_l g (2 - (cos (IZR x) + cos (IZR x * slow theta half)))).
    pose proof (Rmin_r g (2 - (cos (IZR x) + cos (IZR x * slow theta half)))).
    destruct (Z_le_gt_dec (Z.abs y) (Z.of_nat N)); [specialize (IH y Hy ltac:(lia)); lra|].
    destruct (Z.eq_dec y x) as [->|]; [lra|]. replace y with (- x)%Z by lia.
    rewrite opp_IZR, <- Ropp_mult_distr_l, !cos_neg. lra.
Qed.

(** * Softmax *)
Lemma exp_le x y : x <= y -> exp x <= exp y.
Proof. intros [H| ->]; [left; apply exp_increasing; auto|lra]. Qed.
Lemma exp_linear x : 1 + x <= exp x.
Proof. destruct (Req_dec x 0) as [->|]; [rewrite exp_0; lra|]. left; apply exp_ineq1; auto. Qed.
Lemma sum_pos n f : (0 < n)%nat -> (forall j, 0 < f j) -> 0 < sum n f.
Proof. intros H F. pose proof (sum_term n f 0 H ltac:(intros; apply Rlt_le; auto)). pose proof (F 0%nat). lra.
Qed.
(** lem:copy and lem:confidence: where one score leads all others by [g]. *)
Lemma softmax_lead n (z : nat -> R) i g : (i < n)%nat ->
  (forall j, (j < n)%nat -> j <> i -> z j <= z i - g) ->
  1 - INR n * exp (- g) <= exp (z i) / sum n (fun j => exp (z j)).
Proof.
  intros Hi H. pose proof (sum_pos n (fun j => exp (z j)) ltac:(lia) ltac:(intros; apply exp_pos)) as P.
  pose proof (exp_pos (z i)) as E1. pose proof (exp_pos (- g)) as E2.
  assert (U : sum n (fun j => exp (z j)) <= exp (z i) * (1 + INR n * exp (- g))).
  { assert (S' : sum n (fun j => (if (j =? i)%nat then 0 else exp (z j))) <= INR n * (exp (z i) * exp (- g))).
    { apply sum_le_const. intros j Hj. destruct (Nat.eqb_spec j i); [nra|]. rewrite <- exp_plus.
      apply exp_le. pose proof (H j Hj n0). lra. }
    assert (S'' : sum n (fun j => if (j =? i)%nat then exp (z j) else 0) = exp (z i)).
    { rewrite (sum_one n _ i Hi); [rewrite Nat.eqb_refl; auto|]. intros j _ Hne.
      destruct (Nat.eqb_spec j i); congruence. }
    replace (sum n (fun j => exp (z j))) with
      (sum n (fun j => (if (j =? i)%nat then exp (z j) else 0) + (if (j =? i)%nat then 0 else exp (z j)))).
    - rewrite sum_plus, S''. lra.
    - apply sum_ext. intros j _. destruct (j =? i)%nat; lra. }
  pose proof (pos_INR n). set (y := INR n * exp (- g)) in *. assert (0 <= y) by (unfold y; nra).
  apply (Rmult_le_reg_r (sum n (fun j => exp (z j)))); [auto|].
  unfold Rdiv. rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
  destruct (Rle_dec (1 - y) 0); [nra|]. apply (Rle_trans _ ((1 - y) * (exp (z i) * (1 + y)))); nra.
Qed.

(** * lem:separation *)
Lemma separation_reversed (b : nat) (x y : list nat) : ~ In b x -> ~ In b y -> x <> y ->
  exists D, (D <= length x)%nat /\ (D <= length y)%nat /\ nth D (x ++ [b]) b <> nth D (y ++ [b]) b.
Proof.
  revert y; induction x as [|a x IH]; intros [|c y] Hx Hy Hne; try congruence.
  - exists 0%nat. simpl. repeat split; try lia. intros E. apply Hy. left; auto.
  - exists 0%nat. simpl. repeat split; try lia. intros E. apply Hx. left; auto.
  - destruct (Nat.eq_dec a c) as [->|Hac].
    + destruct (IH y) as [D [H1 [H2 H3]]]; simpl in *; try tauto; try congruence.
      exists (S D). simpl. repeat split; solve [lia | auto].
    + exists 0%nat. simpl. repeat split; solve [lia | auto].
Qed.
Lemma separation (b : nat) (x y : list nat) : ~ In b x -> ~ In b y -> x <> y ->
  exists D, (D < length (b :: x))%nat /\ (D < length (b :: y))%nat
    /\ nth (length (b :: x) - S D) (b :: x) b <> nth (length (b :: y) - S D) (b :: y) b.
Proof.
  intros Hx Hy Hne. destruct (separation_reversed b (rev x) (rev y)) as [D [H1 [H2 H3]]].
  - intros I. apply Hx, in_rev; auto.
  - intros I. apply Hy, in_rev; auto.
  - intros E. apply Hne. rewrite <- (rev_involutive x), E. apply rev_involutive.
  - rewrite rev_length in *. exists D. split; [simpl; lia|]. split; [simpl; lia|].
    change (rev x ++ [b]) with (rev (b :: x)) in H3. change (rev y ++ [b]) with (rev (b :: y)) in H3.
    rewrite !rev_nth in H3 by (simpl; lia). exact H3.
Qed.
