(** Finite sums, and products of vectors. *)
From Coq Require Import Reals Lra Lia List Arith Psatz FunctionalExtensionality.
Import ListNotations.
From Snowball Require Import Statement.
Open Scope R_scope.

Lemma sum_ext n f g : (forall i, (i < n)%nat -> f i = g i) -> sum n f = sum n g.
Proof. induction n; intros H; simpl; [reflexivity|]. rewrite IHn, H; auto with arith. Qed.
Lemma sum_plus n f g : sum n (fun i => f i + g i) = sum n f + sum n g.
Proof. induction n; simpl; [lra|]. rewrite IHn; lra. Qed.
Lemma sum_minus n f g : sum n (fun i => f i - g i) = sum n f - sum n g.
Proof. induction n; simpl; [lra|]. rewrite IHn; lra. Qed.
Lemma sum_scale n c f : sum n (fun i => c * f i) = c * sum n f.
Proof. induction n; simpl; [lra|]. rewrite IHn; lra. Qed.
Lemma sum_zero n f : (forall i, (i < n)%nat -> f i = 0) -> sum n f = 0.
Proof. induction n; intros H; simpl; [reflexivity|]. rewrite IHn, H; auto with arith; lra. Qed.
Lemma sum_le n f g : (forall i, (i < n)%nat -> f i <= g i) -> sum n f <= sum n g.
Proof. induction n; intros H; simpl; [lra|]. pose proof (H n ltac:(lia)).
  pose proof (IHn ltac:(auto with arith)). lra. Qed.
Lemma sum_const n c : sum n (fun _ => c) = INR n * c.
Proof. induction n; [simpl; lra|]. rewrite S_INR; simpl sum; rewrite IHn; lra. Qed.
Lemma sum_nonneg n f : (forall i, (i < n)%nat -> 0 <= f i) -> 0 <= sum n f.
Proof. intros H. apply sum_le in H. rewrite sum_zero in H; auto. Qed.
Lemma sum_le_const n f c : (forall i, (i < n)%nat -> f i <= c) -> sum n f <= INR n * c.
Proof. intros H. rewrite <- sum_const. apply sum_le; auto. Qed.
Lemma sum_ge_const n f c : (forall i, (i < n)%nat -> c <= f i) -> INR n * c <= sum n f.
Proof. intros H. rewrite <- sum_const. apply sum_le; auto. Qed.
Lemma sum_split a b f : sum (a + b) f = sum a f + sum b (fun i => f (a + i)%nat).
Proof. induction b; simpl; [rewrite Nat.add_0_r; lra|]. rewrite Nat.add_succ_r; simpl. rewrite IHb; lra. Qed.
Lemma sum_product n m f : sum (n * m) f = sum n (fun i => sum m (fun j => f (i * m + j)%nat)).
Proof. induction n; [reflexivity|]. rewrite Nat.mul_succ_l, sum_split, IHn; reflexivity. Qed.
Lemma sum_one n f i : (i < n)%nat -> (forall j, (j < n)%nat -> j <> i -> f j = 0) -> sum n f = f i.
Proof.
  induction n; intros Hi H; [lia|]; simpl. destruct (Nat.eq_dec i n) as [->|Hne].
  - rewrite sum_zero; [lra|]. intros j Hj; apply H; lia.
  - rewrite IHn, (H n); try lia; try lra. intros j Hj; apply H; lia.
Qed.
(** One term of at least [p], and [n] terms of at least [- q]. *)
Lemma sum_pick n f i p q : (i < n)%nat -> 0 <= q -> p <= f i -> (forall j, (j < n)%nat -> - q <= f j) ->
  p - INR n * q <= sum n f.
Proof.
  induction n; intros Hi Hq Hp H; [lia|]. rewrite S_INR. simpl sum. destruct (Nat.eq_dec i n) as [->|Hne].
  - pose proof (sum_ge_const n f (- q) ltac:(intros; apply H; lia)). lra.
  - pose proof (IHn ltac:(lia) Hq Hp ltac:(intros; apply H; lia)). pose proof (H n ltac:(lia)). lra.
Qed.
Lemma sum_term n f i : (i < n)%nat -> (forall j, (j < n)%nat -> 0 <= f j) -> f i <= sum n f.
Proof. intros Hi H. pose proof (sum_pick n f i (f i) 0 Hi ltac:(lra) ltac:(lra)).
  rewrite Rmult_0_r, Ropp_0 in H0. specialize (H0 H). lra. Qed.

Lemma dot_comm d x y : dot d x y = dot d y x.
Proof. apply sum_ext; intros; lra. Qed.
Lemma dot_self d x : 0 <= dot d x x.
Proof. apply sum_nonneg; intros; nra. Qed.
Lemma dot_minus d x y : dot d (minus x y) (minus x y) = dot d x x - 2 * dot d x y + dot d y y.
Proof.
  unfold dot, minus, Rminus. rewrite Ropp_mult_distr_l, <- !sum_scale, <- !sum_plus.
  apply sum_ext; intros; ring.
Qed.
Lemma dot_divided d w x c : dot d w (fun i => x i / c) = dot d w x / c.
Proof. unfold dot, Rdiv. rewrite Rmult_comm, <- sum_scale. apply sum_ext; intros; ring. Qed.

(** The vector with [c] in coordinate [i]. *)
Definition only (i : nat) (c : R) : vec := fun j => if (j =? i)%nat then c else 0.
Lemma dot_only d i c x : (i < d)%nat -> dot d (only i c) x = c * x i.
Proof.
  intros Hi. unfold dot, only. rewrite (sum_one d _ i Hi).
  - rewrite Nat.eqb_refl; lra.
  - intros j Hj Hne. destruct (Nat.eqb_spec j i); [congruence|lra].
Qed.
Lemma dot_plus d x y z : dot d (plus x y) z = dot d x z + dot d y z.
Proof. unfold dot, plus. rewrite <- sum_plus. apply sum_ext; intros; lra. Qed.
