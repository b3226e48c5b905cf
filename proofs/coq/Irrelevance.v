(** The proof of Theorem 4. *)
From Coq Require Import Reals Lra Lia List Arith Psatz.
Import ListNotations.
From Snowball Require Import Statement IrrelevanceStatement Vectors Kernel Runs Nodes Necessity.
Open Scope R_scope.

Lemma norm_pos d x : 0 <= norm d x.
Proof. apply sqrt_pos. Qed.
Lemma norm_sym d x y : norm d (minus x y) = norm d (minus y x).
Proof. unfold norm, dot, minus. f_equal. apply sum_ext. intros; ring. Qed.
Lemma norm_zero d x : norm d (minus x x) = 0.
Proof. unfold norm. rewrite dot_minus. replace (_ - _ + _) with 0 by ring. apply sqrt_0. Qed.
Lemma near_self M n r s : 0 <= r -> near M n r s s.
Proof. intros H i _. rewrite norm_zero. exact H. Qed.
Lemma firstn_next {A} (ls : list A) k x : nth_error ls k = Some x -> firstn (S k) ls = firstn k ls ++ [x].
Proof. revert ls. induction k; intros [|y ls] H; try discriminate; [injection H as ->; reflexivity|]. simpl.
f_equal. apply IHk. exact H. Qed.
Lemma entering_next M k later t : nth_error (layers M) k = Some later
  -> entering M (S k) t = block M later (entering M k t).
Proof. intros H. unfold entering. rewrite (firstn_next _ _ _ H), run_snoc. reflexivity. Qed.

Section Tubes.
Variables (M : decoder) (l : nat) (t : list nat) (r K : nat -> R).
Notation L := (length (layers M)).
Hypotheses (Hl : (l < L)%nat) (Ht : t <> []) (Htubes : tubes M l t r K).
Let Hfirst := proj1 Htubes.
Let Hlater := proj1 (proj2 Htubes).
Let Hnorm := proj2 (proj2 Htubes).
Lemma some_position : (length t - 1 < length t)%nat.
Proof. destruct t; [congruence|simpl; lia]. Qed.
Lemma in_tube k : (l < k <= L)%nat -> near M (length t) (r k) (entering_without M l k t) (entering M k t).
Proof.
  induction k; intros Hk; [lia|]. destruct (Nat.eq_dec k l) as [->|Hne].
  - unfold entering_without, entering, without. rewrite firstn_firstn, skipn_firstn_comm, Nat.sub_diag.
    simpl firstn at 2.
    rewrite app_nil_r, Nat.min_l by lia. exact Hfirst.
  - destruct (nth_error (layers M) k) as [later|] eqn:E; [|apply nth_error_None in E; lia].
    destruct (Hlater k later ltac:(lia) E) as [Lip ->]. specialize (IHk ltac:(lia)).
    rewrite (entering_next M k later t E).
    assert (W : entering_without M l (S k) t = block M later (entering_without M l k t)).
    { unfold entering_without. rewrite (firstn_next _ _ _ E), without_later,
        run_snoc by (rewrite firstn_length; lia). reflexivity. }
    rewrite W. apply Lip; auto. apply near_self.
    pose proof (IHk _ some_position).
    pose proof (norm_pos (width M) (minus (entering_without M l k t (length t - 1)) (entering M k t
      (length t - 1)))). lra.
Qed.
Lemma difference_moves a b : logit M (layers M) t a - logit M (layers M) t b
  - movement M r K a b <= logit M (without l (layers M)) t a - logit M (without l (layers M)) t b.
Proof.
  pose proof (in_tube L ltac:(lia) _ some_position) as T. unfold entering_without, entering in T.
  rewrite firstn_all in T.
  pose proof Hnorm as Hn. unfold entering in Hn. rewrite firstn_all in Hn.
  unfold logit, times, movement. set (h := run M (layers M) t (length t - 1)) in *.
  set (h' := run M (without l (layers M)) t (length t - 1)) in *.
  assert (T0 : norm (width M) (minus h h) <= r L).
  { rewrite norm_zero. pose proof (norm_pos (width M) (minus h' h)). lra. }
  destruct Hn as [K0 Hn]. pose proof (Hn h' h T T0) as N. set (w := minus (unembedding M a) (unembedding M b)).
  pose proof (cauchy_schwarz (width M) w (minus (rmsnorm M h') (rmsnorm M h))) as C.
  assert (E : dot (width M) w (minus (rmsnorm M h') (rmsnorm M h)) =
    (dot (width M) (unembedding M a) (rmsnorm M h') - dot (width M) (unembedding M b) (rmsnorm M h'))
    - (dot (width M) (unembedding M a) (rmsnorm M h) - dot (width M) (unembedding M b) (rmsnorm M h))).
  { unfold w, minus, dot. rewrite <- !sum_minus. apply sum_ext. intros; ring. }
  rewrite E in C. pose proof (norm_pos (width M) w) as W0.
  pose proof (norm_pos (width M) (minus (rmsnorm M h') (rmsnorm M h))) as D0.
  assert (B : norm (width M) (minus (rmsnorm M h') (rmsnorm M h)) <= K L * r L).
  { eapply Rle_trans; [exact N|]. apply Rmult_le_compat_l; auto. }
  pose proof (Rmult_le_compat_l _ _ _ W0 B). lra.
Qed.
Lemma movement_sym a b : movement M r K a b = movement M r K b a.
Proof. unfold movement. rewrite norm_sym. reflexivity. Qed.
(** The probability of a token changes by a factor of at most exp m, either way. *)
Lemma probability_moves a m : (a < vocabulary M)%nat -> (forall b, (b < vocabulary M)%nat
  -> movement M r K a b <= m) ->
  ln (probability M (layers M) t a) - m <= ln (probability M (without l (layers M)) t a) <= ln (probability M
    (layers M) t a) + m.
Proof.
  intros Va Hm. unfold probability. set (V := vocabulary M) in *.
  set (z := logit M (layers M) t). set (z' := logit M (without l (layers M)) t).
  assert (Ln : forall y, ln (exp (y a) / sum V (fun b => exp (y b))) = y a - ln (sum V (fun b => exp (y b)))).
  { intros y. pose proof (sum_pos V (fun b => exp (y b)) ltac:(lia) ltac:(intros; apply exp_pos)).
    unfold Rdiv. rewrite ln_mult, ln_Rinv, ln_exp; auto; [apply exp_pos|apply Rinv_0_lt_compat; auto]. }
  assert (Cmp : forall y y', (forall b, (b < V)%nat -> y' b - y' a <= y b - y a + m) ->
    ln (sum V (fun b => exp (y' b))) - y' a <= ln (sum V (fun b => exp (y b))) - y a + m).
  { intros y y' H. pose proof (sum_pos V (fun b => exp (y b)) ltac:(lia) ltac:(intros; apply exp_pos)) as P.
    pose proof (sum_pos V (fun b => exp (y' b)) ltac:(lia) ltac:(intros; apply exp_pos)) as P'.
    assert (S : sum V (fun b => exp (y' b)) <= exp (y' a - y a + m) * sum V (fun b => exp (y b))).
    { rewrite <- sum_scale. apply sum_le. intros b Hb. rewrite <- exp_plus. apply exp_le. pose proof (H b Hb).
      lra. }
    assert (ln (sum V (fun b => exp (y' b))) <= ln (exp (y' a - y a + m) * sum V (fun b => exp (y b)))).
    { destruct S as [S|S]; [left; apply ln_increasing; auto|rewrite S; lra]. }
    rewrite ln_mult, ln_exp in H0 by (auto using exp_pos). lra. }
  rewrite (Ln z), (Ln z').
  assert (D : forall b, (b < V)%nat -> z' b - z' a <= z b - z a + m /\ z b - z a <= z' b - z' a + m).
  { intros b Hb. pose proof (Hm b Hb). pose proof (difference_moves a b) as D1.
    pose proof (difference_moves b a) as D2.
    rewrite (movement_sym b a) in D2. fold z z' in D1, D2. lra. }
  pose proof (Cmp z z' ltac:(intros b Hb; apply D; auto)).
  pose proof (Cmp z' z ltac:(intros b Hb; apply D; auto)). lra.
Qed.
End Tubes.

Theorem irrelevance : irrelevance_theorem.
Proof.
  intros M l t answer Hl. revert t. induction answer as [|a rest IH]; intros t Ht Hs Safe; [exact I|].
  destruct Hs as (Va & Lead & P & Rest). split; auto.
  assert (S0 : forall b, (b < vocabulary M)%nat -> b <> a
    -> logit M (without l (layers M)) t b < logit M (without l (layers M)) t a).
  { intros b Vb Hne. destruct (Safe [] a rest eq_refl) as (r & K & T & Far). rewrite app_nil_r in *.
    pose proof (Far b Vb Hne). pose proof (difference_moves M l t r K Hl Ht T a b). lra. }
  split; auto. split.
  - unfold probability. apply Rmult_le_pos; [left; apply exp_pos|]. left. apply Rinv_0_lt_compat.
    apply sum_pos; [lia|intros; apply exp_pos].
  - apply IH; auto.
    + intros E. apply app_eq_nil in E. destruct E; discriminate.
    + intros before b after ->. rewrite <- app_assoc. apply (Safe (a :: before) b after). reflexivity.
Qed.

Lemma likelihood_moves M l t answer m : (l < length (layers M))%nat -> t <> []
  -> moves_at_most M l t answer m ->
  log_likelihood M (layers M) t answer - m <= log_likelihood M (without l (layers M)) t answer
  <= log_likelihood M (layers M) t answer + m.
Proof.
  intros Hl. revert t m. induction answer as [|a rest IH]; intros t m Ht H; simpl in *; [lra|].
  destruct H as (Va & r & K & m' & T & Hm & Rest). pose proof (probability_moves M l t r K Hl Ht T a m' Va Hm).
  pose proof (IH (t ++ [a]) (m - m') ltac:(intros E; apply app_eq_nil in E; destruct E; discriminate) Rest).
  lra.
Qed.
Theorem choices : choices_theorem.
Proof.
  intros M l t right wrong m m' Hl Ht H1 H2 Lead.
  pose proof (likelihood_moves M l t right m Hl Ht H1). pose proof (likelihood_moves M l t wrong m' Hl Ht H2).
  lra.
Qed.
