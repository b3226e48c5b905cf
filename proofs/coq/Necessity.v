(** The hypotheses of the theorem are needed, and can be met: a dataset exists; answers that some
    decoder says are consistent; no score exceeds 2. *)
From Coq Require Import Reals Lra Lia List Arith Psatz.
Import ListNotations.
From Snowball Require Import Statement Vectors Nodes.
Open Scope R_scope.

(** One row is a dataset, whatever its prompt, label and distractor are. *)
Lemma one_row V r : label r <> [] -> distractor r <> [] -> label r <> distractor r ->
  Forall (fun a => 2 <= a < V)%nat (prompt r ++ label r ++ distractor r) -> dataset V [r].
Proof.
  intros H1 H2 H3 F.
  assert (W : forall part t a b, wants [r] part t a -> wants [r] part t b -> a = b).
  { intros part t a b (x & c & e & [<-|[]] & -> & E) (x' & c' & e' & [<-|[]] & T & E').
    apply app_inv_head in T. subst c'. rewrite E in E'. apply app_inv_head in E'. congruence. }
  repeat split; try discriminate; try apply W; destruct H as [<-|[]]; auto.
Qed.

(** Where a decoder says an answer after [t], it says each of its tokens after those before it. *)
Lemma says_next M ls p t before a after : says M ls p t (before ++ a :: after) ->
  (a < vocabulary M)%nat /\ forall b, (b < vocabulary M)%nat -> b <> a
    -> logit M ls (t ++ before) b < logit M ls (t ++ before) a.
Proof.
  revert t. induction before as [|c before IH]; intros t H.
  - rewrite app_nil_r. destruct H as (H1 & H2 & _). auto.
  - destruct H as (_ & _ & _ & H). apply IH in H. rewrite <- app_assoc in H. exact H.
Qed.
(** The data of every decoder that answers them all are consistent, as [dataset] demands. *)
Theorem consistency_is_needed M ls p D part :
  (forall r, In r D -> says M ls p (bos :: prompt r) (ended D (part r))) ->
  forall t a b, wants D part t a -> wants D part t b -> a = b.
Proof.
  intros H t a b (r & c & e & Hr & T & E) (r' & c' & e' & Hr' & T' & E').
  pose proof (H r Hr) as S. rewrite E in S. apply says_next in S. destruct S as [Va La].
  pose proof (H r' Hr') as S. rewrite E' in S. apply says_next in S. destruct S as [Vb Lb].
  cbn [app] in La, Lb. rewrite <- T in La. rewrite <- T' in Lb.
  destruct (Nat.eq_dec a b) as [|Ne]; auto. pose proof (La b Vb ltac:(auto)). pose proof (Lb a Va Ne). lra.
Qed.

Lemma cauchy_schwarz d x y : - (norm d x * norm d y) <= dot d x y.
Proof.
  pose proof (dot_self d x) as X. pose proof (dot_self d y) as Y. unfold norm. rewrite <- sqrt_mult by auto.
  set (a := dot d x x) in *. set (b := dot d y y) in *. set (c := dot d x y) in *.
  assert (Q : forall u v, 0 <= u * u * a - 2 * (u * v) * c + v * v * b).
  { intros u v. pose proof (dot_self d (minus (fun i => u * x i) (fun i => v * y i))) as D.
    rewrite dot_minus in D.
    unfold dot in D. rewrite (sum_ext d (fun i => u * x i * (u * x i)) (fun i => u * u * (x i * x i))),
      (sum_ext d (fun i => u * x i * (v * y i)) (fun i => u * v * (x i * y i))),
      (sum_ext d (fun i => v * y i * (v * y i)) (fun i => v * v * (y i * y i))), !sum_scale in D by (intros;
        ring).
    unfold a, b, c, dot. lra. }
  assert (C : c * c <= a * b).
  { destruct (Req_dec a 0) as [Ea|Ea].
    - rewrite Ea. pose proof (Q (b + 1) c). rewrite Ea in H. pose proof (Q c 1) as H2. rewrite Ea in H2. nra.
    - pose proof (Q c a). assert (0 < a) by lra. nra. }
  rewrite <- (Ropp_involutive c). apply Ropp_le_contravar. apply Rle_trans with (sqrt ((- c) * (- c))).
  - destruct (Rle_dec 0 (- c)); [rewrite sqrt_square; lra|]. pose proof (sqrt_pos (- c * - c)). lra.
  - apply sqrt_le_1_alt. lra.
Qed.
(** Hence epsilon < 2: of several scores none is larger than 2. *)
Theorem score_at_most_2 M l t i : 0 < norm (width M) (entering M l t i)
  -> 0 < norm (width M) (entering M (S l) t i) ->
  score M l t i <= 2.
Proof.
  intros X Y. unfold score, cosine. set (x := entering M l t i) in *. set (y := entering M (S l) t i) in *.
  pose proof (cauchy_schwarz (width M) x y).
  assert (0 < norm (width M) x * norm (width M) y) by (apply Rmult_lt_0_compat; auto).
  assert (- 1 <= dot (width M) x y / (norm (width M) x * norm (width M) y)); [|lra].
  apply (Rmult_le_reg_r (norm (width M) x * norm (width M) y)); auto. unfold Rdiv.
  rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.
