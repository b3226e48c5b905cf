(** The nodes of a dataset: what is wanted after BOS, a prompt and a proper prefix of an answer. *)
From Coq Require Import Reals Lra Lia List Arith Psatz.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel.
Open Scope R_scope.

(** A node: which switches are on, the tokens, and what is wanted next. *)
Definition entry := (list bool * list nat * nat)%type.
Fixpoint entries (on : list bool) (t answer : list nat) : list entry :=
  match answer with [] => [] | a :: rest => (on, t, a) :: entries on (t ++ [a]) rest end.
(** With the target the one switch of Theorem 1 is on. *)
Definition all_entries (D : list row) : list entry :=
  flat_map (fun r => entries [true] (bos :: prompt r) (ended D (label r))
                  ++ entries [false] (bos :: prompt r) (ended D (distractor r))) D.

Lemma entries_spec on t answer e : In e (entries on t answer) ->
  exists before after, answer = before ++ snd e :: after /\ fst e = (on, t ++ before).
Proof.
  revert t. induction answer as [|a rest IH]; intros t; simpl; [tauto|]. intros [<-|H].
  - exists [], rest. rewrite app_nil_r. auto.
  - destruct (IH _ H) as [b [c [-> E]]]. exists (a :: b), c. rewrite E, <- app_assoc. auto.
Qed.
Lemma entries_in on t before a after : In (on, t ++ before, a) (entries on t (before ++ a :: after)).
Proof.
  revert t. induction before as [|x before IH]; intros t; simpl.
  - rewrite app_nil_r. auto.
  - right. replace (t ++ x :: before) with ((t ++ [x]) ++ before) by (rewrite <- app_assoc; auto). apply IH.
Qed.
Lemma all_entries_spec D e : In e (all_entries D) -> exists r part before after,
  In r D /\ (fst (fst e) = [true] /\ part = label \/ fst (fst e) = [false] /\ part = distractor)
    /\ snd (fst e) = bos :: prompt r ++ before
  /\ ended D (part r) = before ++ snd e :: after.
Proof.
  intros H. apply in_flat_map in H. destruct H as [r [Hr H]]. apply in_app_or in H.
  destruct H as [H|H]; apply entries_spec in H; destruct H as [b [c [E F]]];
    [exists r, label, b, c|exists r, distractor, b, c]; rewrite F; simpl; auto.
Qed.
Lemma entries_consistent D V e e' : dataset V D -> In e (all_entries D) -> In e' (all_entries D) ->
  fst e = fst e' -> snd e = snd e'.
Proof.
  intros (_ & _ & C1 & C2) H H' E. apply all_entries_spec in H, H'.
  destruct H as (r & p & b & c & Hr & S & T & F). destruct H' as (r' & p' & b' & c' & Hr' & S' & T' & F').
  rewrite E in S, T. assert (X : prompt r ++ b = prompt r' ++ b') by congruence.
  destruct S as [[S ->]|[S ->]], S' as [[S' ->]|[S' ->]]; try congruence.
  - apply (C1 (prompt r ++ b)); [exists r, b, c; auto|exists r', b', c'; auto].
  - apply (C2 (prompt r ++ b)); [exists r, b, c; auto|exists r', b', c'; auto].
Qed.
Lemma words V D r : dataset V D -> In r D ->
  Forall (fun a => 0 < a < V)%nat (prompt r ++ ended D (label r))
    /\ Forall (fun a => 0 < a < V)%nat (prompt r ++ ended D (distractor r)).
Proof.
  intros (_ & W & _ & _) Hr. destruct (W r Hr) as (N1 & _ & _ & F).
  rewrite !Forall_app in F. destruct F as (F1 & F2 & F3).
  assert (weak : forall l, Forall (fun a => 2 <= a < V)%nat l -> Forall (fun a => 0 < a < V)%nat l).
  { intros l. apply Forall_impl. intros; lia. }
  assert (two : (2 < V)%nat) by (destruct (label r) as [|a l]; [congruence|inversion F2; subst; lia]).
  assert (one : Forall (fun a => 0 < a < V)%nat [eos]) by (repeat constructor; unfold eos; lia).
  split; apply Forall_app; split; auto; unfold ended; destruct (existsb _ D); auto; apply Forall_app; auto.
Qed.
Lemma entry_ok V D e : dataset V D -> In e (all_entries D) ->
  length (fst (fst e)) = 1%nat /\ (snd e < V)%nat /\ Forall (fun a => a < V)%nat (snd (fst e))
  /\ exists w, snd (fst e) = 0%nat :: w /\ ~ In 0%nat w.
Proof.
  intros HD H. apply all_entries_spec in H. destruct H as (r & p & b & c & Hr & S & T & F).
  destruct (words V D r HD Hr) as [W1 W2].
  assert (W : Forall (fun a => 0 < a < V)%nat (prompt r ++ b ++ snd e :: c)) by (rewrite <- F;
    destruct S as [[_ ->]|[_ ->]]; auto).
  rewrite app_assoc, Forall_app in W. destruct W as [W E]. split; [destruct S as [[-> _]|[-> _]]; auto|].
  inversion E; subst.
  split; [lia|]. rewrite T. split; [|exists (prompt r ++ b); split; auto].
  - constructor; [unfold bos; lia|]. eapply Forall_impl; [|exact W]. simpl; intros; lia.
  - intros I. rewrite Forall_forall in W. specialize (W _ I). lia.
Qed.

(** lem:answers: a decoder that says what is wanted after every node says the answers. *)
Lemma says_entries M ls p on t answer : (forall s a, In (on, s, a) (entries on t answer) ->
    (a < vocabulary M)%nat /\ (forall b, (b < vocabulary M)%nat -> b <> a -> logit M ls s b < logit M ls s a)
    /\ p <= probability M ls s a) ->
  says M ls p t answer.
Proof.
  revert t. induction answer as [|a rest IH]; intros t H; simpl; auto.
  destruct (H t a) as (H1 & H2 & H3); [left; auto|]. repeat split; auto. apply IH. intros s b I. apply H.
  right; auto.
Qed.

(** Nothing else is said: two answers that are said after the same tokens continue each other. *)
Lemma says_first M ls p p' t x y : says M ls p t x -> says M ls p' t y ->
  (exists z, x = y ++ z) \/ (exists z, y = x ++ z).
Proof.
  revert t y. induction x as [|a x IH]; intros t [|b y] Hx Hy; [left; exists []; auto|right; exists (b :: y);
    auto|left; exists (a :: x); auto|].
  cbn in Hx, Hy. destruct Hx as (Va & La & _ & Rx), Hy as (Vb & Lb & _ & Ry).
  assert (a = b) as <-.
  { destruct (Nat.eq_dec a b) as [|Hne]; auto. pose proof (La b Vb ltac:(auto)). pose proof (Lb a Va Hne).
    lra. }
  destruct (IH _ _ Rx Ry) as [[z ->]|[z ->]]; [left|right]; exists z; auto.
Qed.
Lemma eos_ends x y z : ~ In eos x -> x ++ [eos] = y ++ [eos] ++ z -> x = y.
Proof.
  revert y. induction x as [|a x IH]; intros [|b y] H E; auto; cbn in *; injection E as E1 E2; subst.
  - destruct y; discriminate E2.
  - exfalso; auto.
  - f_equal. apply IH; auto.
Qed.
(** Where the distractor is said, the label is not. *)
Lemma distractor_is_wrong V D M ls p p' t r : dataset V D -> In r D ->
  says M ls p t (ended D (distractor r)) -> ~ says M ls p' t (ended D (label r)).
Proof.
  intros (_ & W & _) Hr S1 S2. destruct (W r Hr) as (N1 & N2 & Ne & F). rewrite !Forall_app in F.
  destruct F as (_ & F1 & F2).
  assert (no : forall l, Forall (fun a => 2 <= a < V)%nat l -> ~ In eos l).
  { intros l Fl I. rewrite Forall_forall in Fl. specialize (Fl _ I). unfold eos in Fl. lia. }
  pose proof (says_first _ _ _ _ _ _ _ S1 S2) as X. unfold ended in X. destruct (existsb _ D) eqn:B.
  - destruct X as [[z E]|[z E]]; rewrite <- app_assoc in E; apply eos_ends in E; auto.
  - assert (short : length (label r) = 1%nat /\ length (distractor r) = 1%nat).
    { assert (H : ((1 <? length (label r)) || (1 <? length (distractor r)))%nat%bool = false).
      { apply Bool.not_true_is_false. intros H. apply (Bool.diff_true_false). rewrite <- B. symmetry.
        apply existsb_exists. exists r. auto. }
      apply Bool.orb_false_iff in H. rewrite !Nat.ltb_ge in H.
      destruct (label r), (distractor r); try congruence; cbn in *; lia. }
    destruct (label r) as [|a [|]], (distractor r) as [|b [|]]; cbn in short; try lia.
    destruct X as [[z E]|[z E]]; injection E as E _; subst; congruence.
Qed.
