(** The proof of Theorem 2. Layer [l] flips switch [l], whatever else is present, and every token has
    the same norm at every layer. *)
From Coq Require Import Reals Lra Lia List Arith Psatz FunctionalExtensionality.
Import ListNotations.
From Snowball Require Import Statement UniversalityStatement Vectors Kernel Model Runs Recall Schedule Nodes
  Build.
Open Scope R_scope.

(** * Patterns and layers that are present *)
Fixpoint patterns (k : nat) : list (list bool) :=
  match k with O => [[]] | S k => map (cons true) (patterns k) ++ map (cons false) (patterns k) end.
Lemma in_patterns on : In on (patterns (length on)).
Proof. induction on as [|b on IH]; simpl; auto. apply in_or_app. destruct b; [left|right]; apply in_map; auto.
Qed.
Lemma patterns_length k on : In on (patterns k) -> length on = k.
Proof.
  revert on. induction k; simpl; intros on H.
  - destruct H as [<-|[]]. reflexivity.
  - apply in_app_or in H. destruct H as [H|H]; apply in_map_iff in H; destruct H as (x & <- & Hx); simpl;
      f_equal; auto.
Qed.
Lemma select_nil on : select on [] = [].
Proof. destruct on as [|[]]; reflexivity. Qed.
Lemma select_snoc on ls x : select on (ls ++ [x]) =
  select on ls ++ (if (length ls <? length on)%nat then if nth (length ls) on false then [x] else [] else [x]).
Proof.
  revert ls. induction on as [|b on IH]; intros ls; [destruct ls; reflexivity|].
  destruct ls as [|l ls]; [destruct b; simpl; [rewrite select_nil|rewrite select_nil]; reflexivity|].
  simpl. destruct b; rewrite IH; reflexivity.
Qed.

Lemma select_all_present k ls : select (repeat true k) ls = ls.
Proof. revert ls. induction k; intros [|l ls]; simpl; f_equal; auto. Qed.

(** * Sizes *)
Lemma common_room L (c : nat -> R) : (forall l, (l < L)%nat -> 0 < c l < 2) ->
  exists g, 0 < g /\ forall l, (l < L)%nat -> g <= c l <= 2 - g.
Proof.
  induction L; intros H; [exists 1; split; [lra|lia]|].
  destruct IHL as (g & g0 & Hg); [intros; apply H; lia|]. pose proof (H L ltac:(lia)) as HL.
  exists (Rmin g (Rmin (c L) (2 - c L))). pose proof (Rmin_l g (Rmin (c L) (2 - c L))).
  pose proof (Rmin_r g (Rmin (c L) (2 - c L))).
  pose proof (Rmin_l (c L) (2 - c L)). pose proof (Rmin_r (c L) (2 - c L)). split.
  - repeat apply Rmin_pos; lra.
  - intros l Hl. destruct (Nat.eq_dec l L) as [->|Hne]; [lra|]. pose proof (Hg l ltac:(lia)). lra.
Qed.

Section Universality.
Variables (V L : nat) (c : nat -> R) (delta p g : R) (Q : list bool -> questions).
Hypotheses (HV : (0 < V)%nat) (HL : (0 < L)%nat) (Hg : 0 < g) (Hc : forall l, (l < L)%nat -> g <= c l <= 2 - g)
  (Hdelta : 0 < delta) (Hp : p < 1) (HQ : forall on, length on = (L - 1)%nat -> consistent V (Q on)).

Definition all_asked : list entry := flat_map (fun on =>
  flat_map (fun qa => entries (on ++ [false]) (bos :: fst qa) (snd qa)) (Q on)) (patterns (L - 1)).
Lemma asked_spec e : In e all_asked -> exists on q before after, length on = (L - 1)%nat
  /\ In (q, before ++ snd e :: after) (Q on)
  /\ fst e = (on ++ [false], bos :: q ++ before).
Proof.
  intros H. apply in_flat_map in H. destruct H as (on & Ho & H). apply patterns_length in Ho.
  apply in_flat_map in H. destruct H as ((q & ans) & Hq & H). apply entries_spec in H.
  destruct H as (b & a & E & F).
  cbn [fst snd] in *. subst ans. exists on, q, b, a. auto.
Qed.
Lemma asked_ok : answerable V L all_asked.
Proof.
  split.
  - intros e H. destruct (asked_spec e H) as (on & q & b & a & Lo & Hq & F). rewrite F. cbn [fst snd].
    destruct (HQ on Lo) as [W _]. pose proof (W _ _ Hq) as X. rewrite app_assoc in X. apply Forall_app in X.
    destruct X as [X1 X2].
    inversion X2; subst. rewrite app_length. simpl length. split; [lia|]. split; [lia|]. split.
    + constructor; [unfold bos; lia|]. eapply Forall_impl; [|exact X1]. simpl; intros; lia.
    + exists (q ++ b). split; auto. intros I. rewrite Forall_forall in X1. specialize (X1 _ I). lia.
  - intros e e' H H' E. destruct (asked_spec e H) as (on & q & b & a & Lo & Hq & F).
    destruct (asked_spec e' H') as (on' & q' & b' & a' & Lo' & Hq' & F'). rewrite F, F' in E.
    injection E as E1 E2.
    apply app_inj_tail in E1. destruct E1 as [<- _]. destruct (HQ on Lo) as [_ C].
    apply (C (q ++ b)); [exists q, b, a; auto|rewrite E2; exists q', b', a'; auto].
Qed.

Lemma asked_in on q ans e : length on = (L - 1)%nat -> In (q, ans) (Q on) ->
  In e (entries (on ++ [false]) (bos :: q) ans) -> In e all_asked.
Proof.
  intros Hon Hq He. apply in_flat_map. exists on. split; [rewrite <- Hon; apply in_patterns|].
  apply in_flat_map. exists (q, ans). auto.
Qed.

(** The squared size of the filler, the squared norm of every token. *)
Definition UU : R := 2 * (INR L + 2) / g.
Definition RR : R := UU + 2 + INR L.
Definition turn (l : nat) : R := acos (1 - (c l * RR - if (l <? L - 1)%nat then 2 else 0) / UU).
Lemma L_pos : 1 <= INR L.
Proof. apply (le_INR 1). lia. Qed.
Lemma UU_pos : 0 < UU.
Proof. pose proof L_pos. unfold UU. apply Rdiv_lt_0_compat; lra. Qed.
Lemma g_UU : g * UU = 2 * (INR L + 2).
Proof. unfold UU. field. lra. Qed.
(** lem:prescribed-scores *)
Lemma turned l : (l < L)%nat -> UU * cos (turn l) = UU - (c l * RR - if (l <? L - 1)%nat then 2 else 0).
Proof.
  intros Hl. pose proof UU_pos as U0. pose proof L_pos as L1. pose proof g_UU as gU.
  destruct (Hc l Hl) as [C1 C2].
  unfold turn. rewrite cos_acos; [field; lra|]. set (y := c l * RR - _).
  assert (Y : 0 <= y <= 2 * UU) by (unfold y, RR; destruct (l <? L - 1)%nat; nra).
  assert (0 <= y / UU <= 2); [|lra]. split; [apply Rmult_le_pos; [lra|left; apply Rinv_0_lt_compat; auto]|].
  apply (Rmult_le_reg_r UU); auto. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

Variables (P : parameters) (E : list entry).
Hypotheses (HE : answerable V L E)
  (Hin : forall on q ans e, length on = (L - 1)%nat -> In (q, ans) (Q on)
    -> In e (entries (on ++ [false]) (bos :: q) ans) -> In e E)
  (G : good P delta) (Rd : reads P (fun _ => 1) E) (PL : last P = (L - 1)%nat) (PV : Model.V P = V)
  (Pm : switches P = L) (PU : U P = sqrt UU) (Pstart : start P = fun _ => -1)
  (Pwhich : forall l, which P l = if (l <? L)%nat then l else 0%nat) (Pgain : forall l,
    gain P l = if (l <? L - 1)%nat then -1 else 1)
  (Pang : angle P = turn) (Pen : forall l, energy P l = INR L) (Pdoubt : doubt P = 1 - p).
Notation M := (model P).

(** The switches before layer [k] where the layers [on] are present. *)
Definition signs (on : list bool) (k : nat) : nat
  -> R := fun j => if (j <? k)%nat then sign (nth j on false) else -1.
Lemma signs_size on k : dot (switches P) (signs on k) (signs on k) = INR L.
Proof.
  unfold dot. rewrite (sum_ext _ _ (fun _ => 1)), sum_const, Pm by (intros i _; unfold signs, sign;
    destruct (i <? k)%nat, (nth i on false); ring). ring.
Qed.
Lemma signs_change on k : (k < L - 1)%nat -> nth k on false = true -> signs on (S k) = moved P (signs on k) k.
Proof.
  intros Hk Hn. apply functional_extensionality. intros j. unfold signs, moved. rewrite Pwhich, Pgain.
  destruct (Nat.ltb_spec k L); [|lia]. destruct (Nat.ltb_spec k (L - 1)); [|lia].
  destruct (Nat.eqb_spec j k) as [Ej|Ej], (Nat.ltb_spec j (S k)), (Nat.ltb_spec j k); try lia; auto.
  rewrite Ej, Hn. unfold sign. ring.
Qed.
Lemma signs_stay on k : nth k on false = false -> signs on (S k) = signs on k.
Proof.
  intros Hn. apply functional_extensionality. intros j. unfold signs.
  destruct (Nat.ltb_spec j (S k)), (Nat.ltb_spec j k); try lia; auto. replace j with k by lia. rewrite Hn.
  reflexivity.
Qed.
Lemma signs_last s : moved P s (last P) = s.
Proof.
  apply functional_extensionality. intros j. unfold moved. rewrite Pgain, PL.
  destruct (Nat.ltb_spec (L - 1) (L - 1)); [lia|].
  destruct (j =? _)%nat; ring.
Qed.
Definition turned_by (on : list bool) (k : nat) : R := sum k (fun j => if nth j on false then turn j else 0).

Section Present.
Variable on : list bool.
Hypothesis Hon : length on = (L - 1)%nat.
Lemma layers_of k : (k <= L)%nat -> firstn k (layers M) = map (lay P) (seq 0 k).
Proof. intros H. apply first_layers. lia. Qed.
Lemma select_layers k : (k < L - 1)%nat -> select on (map (lay P) (seq 0 (S k)))
  = select on (map (lay P) (seq 0 k)) ++ (if nth k on false then [lay P k] else []).
Proof.
  intros Hk. rewrite seq_S, map_app, Nat.add_0_l. simpl map. rewrite select_snoc, map_length, seq_length, Hon.
  destruct (Nat.ltb_spec k (L - 1)); [auto|lia].
Qed.
Lemma select_all : select on (map (lay P) (seq 0 (S (last P)))) = select on (map (lay P) (seq 0 (last P))) ++
  [lay P (last P)].
Proof.
  rewrite seq_S, map_app, Nat.add_0_l. simpl map. rewrite select_snoc, map_length, seq_length, Hon, PL.
  destruct (Nat.ltb_spec (L - 1) (L - 1)); [lia|auto].
Qed.
Lemma run_present t k : Forall (fun a => a < Model.V P)%nat t -> (k <= L - 1)%nat ->
  run M (select on (map (lay P) (seq 0 k))) t = plain P (turned_by on k) (signs on k) (token t).
Proof.
  intros Ht. induction k; intros Hk.
  - simpl seq. simpl map. rewrite select_nil, run_none. unfold turned_by. simpl sum. f_equal. rewrite Pstart.
    reflexivity.
  - rewrite select_layers by lia. unfold turned_by. simpl sum. fold (turned_by on k).
    destruct (nth k on false) eqn:En.
    + rewrite (run_step P) with (A := turned_by on k) (s := signs on k); try apply G; auto; try lia;
        [|rewrite signs_size, Pen; auto|apply IHk; lia].
      rewrite Pang, <- signs_change by (auto; lia). reflexivity.
    + rewrite app_nil_r, Rplus_0_r, signs_stay by auto. apply IHk. lia.
Qed.
Lemma run_final t : Forall (fun a => a < Model.V P)%nat t ->
  run M (select on (layers M)) t = final P (turned_by on (L - 1) + turn (L - 1)) (signs on (L - 1)) (token t).
Proof.
  intros Ht. cbn [layers model]. rewrite select_all.
  rewrite (run_last P) with (A := turned_by on (L - 1)) (s := signs on (L - 1)); try apply G; auto.
  - rewrite signs_last, Pang, PL. reflexivity.
  - lia.
  - rewrite signs_size, Pen; auto.
  - rewrite PL. apply run_present; auto.
Qed.
Lemma on_ok : length (on ++ [false]) = switches P.
Proof. rewrite app_length, Pm, Hon. simpl. lia. Qed.
Lemma signs_on j : (j < switches P)%nat -> signs on (L - 1) j = 1 * sign (nth j (on ++ [false]) false).
Proof.
  intros Hj. rewrite Pm in Hj. unfold signs. rewrite Rmult_1_l. destruct (Nat.ltb_spec j (L - 1)).
  - rewrite app_nth1 by lia. reflexivity.
  - rewrite app_nth2 by lia. replace (j - length on)%nat with 0%nat by lia. reflexivity.
Qed.
Lemma answerable_P : answerable (Model.V P) (switches P) E.
Proof. rewrite PV, Pm. exact HE. Qed.
Lemma V_pos : (0 < Model.V P)%nat.
Proof. rewrite PV. exact HV. Qed.
Lemma size_P : dot (switches P) (signs on (L - 1)) (signs on (L - 1)) = energy P (S (last P)).
Proof. rewrite signs_size, Pen. reflexivity. Qed.
Lemma settled_on : settled P (signs on (L - 1)).
Proof.
  apply (is_settled P (fun _ => 1) E (on ++ [false])); auto using answerable_P, on_ok, signs_on, size_P, V_pos;
    intros; lra.
Qed.
Lemma says_on q ans : In (q, ans) (Q on) -> says M (select on (layers M)) p (bos :: q) ans.
Proof.
  intros I. apply (says_all P delta (fun _ => 1) E (on ++ [false]) (signs on (L - 1)) G Rd answerable_P V_pos)
    with (A := turned_by on (L - 1) + turn (L - 1)); auto using on_ok, signs_on, size_P; try (intros; lra).
  - intros e Ie. apply (Hin on q ans); auto.
  - intros t' Ht'. apply run_final. auto.
Qed.

Variables (t : list nat) (i : nat).
Hypothesis Ht : Forall (fun a => a < V)%nat t.
Let HtP : Forall (fun a => a < Model.V P)%nat t.
Proof. rewrite PV. exact Ht. Qed.
Let tok : (token t i < Model.V P)%nat.
Proof. apply token_V; auto using V_pos. Qed.
Lemma U_square : U P * U P = UU.
Proof. rewrite PU. apply sqrt_sqrt. pose proof UU_pos. lra. Qed.
Lemma C_is : C P + INR L = RR.
Proof. unfold C, RR. rewrite U_square. ring. Qed.
Lemma RR_big : 2 <= RR.
Proof. pose proof UU_pos. pose proof L_pos. unfold RR. lra. Qed.
Lemma at_depth k : (k <= L)%nat -> exists A s x y, entering_with M on k t i = state P A s (token t i) x y
  /\ dot (switches P) s s = INR L /\ 0 <= dot (nodes P) x x + dot (W P) y y.
Proof.
  intros Hk. unfold entering_with. destruct (Nat.eq_dec k L) as [->|Hne].
  - rewrite firstn_all2 by (cbn [layers model]; rewrite map_length, seq_length; lia). rewrite run_final by auto.
    do 4 eexists. split; [reflexivity|]. split; [apply signs_size|].
    pose proof (dot_self (nodes P) (context P (token t) i)).
    pose proof (dot_self (W P) (result P (reading P (signs on (L - 1)) (token t) i) (signs on (L - 1))
      (token t) i)). lra.
  - rewrite layers_of, run_present by (auto; lia). do 4 eexists. split; [reflexivity|].
    split; [apply signs_size|]. rewrite !dot_zero. lra.
Qed.
Lemma positive k : (k <= L)%nat -> 0 < norm (d P) (entering_with M on k t i).
Proof.
  intros Hk. destruct (at_depth k Hk) as (A & s & x & y & Es & F & N). unfold norm.
  rewrite Es, self_state, F by apply tok.
  apply sqrt_lt_R0. pose proof C_is. pose proof RR_big. lra.
Qed.
Lemma scores_on l : (l < L - 1)%nat -> nth l on false = true -> score_with M on l t i = c l.
Proof.
  intros Hl Hn. unfold score_with, entering_with, cosine, norm. rewrite !layers_of, !run_present by (auto; lia).
  cbn [width model]. unfold plain. rewrite !self_state, dot_state, !signs_size, !dot_zero by apply tok.
  unfold turned_by at 2. simpl sum. fold (turned_by on l). rewrite Hn.
  replace (turned_by on l - (turned_by on l + turn l)) with (- turn l) by ring. rewrite cos_neg.
  replace (C P + INR L + (0 + 0)) with RR by (rewrite <- C_is; ring). pose proof RR_big as R2.
  rewrite sqrt_sqrt by lra.
  rewrite U_square, turned by lia. destruct (Nat.ltb_spec l (L - 1)); [|lia].
  assert (X : dot (switches P) (signs on l) (signs on (S l)) = INR L - 2).
  { unfold dot. rewrite (sum_ext _ _ (fun j => 1 - (if (j =? l)%nat then 2 else 0))).
    - rewrite (sum_minus _ (fun _ => 1)), sum_const, (sum_one _ _ l); rewrite ?Pm; try lia.
      + rewrite Nat.eqb_refl. ring.
      + intros j _ Hne. destruct (Nat.eqb_spec j l); [congruence|auto].
    - intros j _. rewrite signs_change by auto. unfold moved, signs. rewrite Pwhich, Pgain.
      destruct (Nat.ltb_spec l L); [|lia]. destruct (Nat.ltb_spec l (L - 1)); [|lia].
      set (x := if (j <? l)%nat then sign (nth j on false) else -1).
      assert (x * x = 1) by (unfold x; destruct (j <? l)%nat; [apply sign_square|ring]).
      destruct (j =? l)%nat; lra. }
  rewrite X. unfold RR in *. field. lra.
Qed.
Lemma score_last : Rabs (score_with M on (L - 1) t i - c (L - 1)%nat) < delta.
Proof.
  unfold score_with, entering_with, cosine, norm. rewrite layers_of, run_present by (auto; lia).
  replace (firstn (S (L - 1)) (layers M)) with (layers M) by (symmetry; apply firstn_all2; cbn [layers model];
    rewrite map_length, seq_length; lia).
  rewrite run_final by auto. cbn [width model]. unfold plain, final.
  rewrite !self_state, dot_state, !signs_size, !dot_zero by apply tok.
  set (f := dot (nodes P) (context P _ _) _ + _).
  assert (F : 0 <= f <= delta).
  { pose proof (context_small P delta G (token t) i).
    pose proof (result_small P delta G (signs on (L - 1)) (token t) i settled_on). unfold f. lra. }
  set (A := turned_by on (L - 1)). replace (A - (A + turn (L - 1))) with (- turn (L - 1)) by ring.
  rewrite cos_neg, U_square, turned by lia.
  destruct (Nat.ltb_spec (L - 1) (L - 1)); [lia|].
  replace (C P + INR L + (0 + 0)) with RR by (rewrite <- C_is; ring). rewrite C_is. pose proof RR_big as R2.
  set (cl := c (L - 1)%nat). assert (Hcl : g <= cl <= 2 - g) by (apply Hc; lia).
  replace (2 + (UU - (cl * RR - 0)) + INR L + 0 + 0) with ((1 - cl) * RR) by (unfold RR; ring).
  pose proof (sqrt_product RR f ltac:(lra) ltac:(lra)) as Z1. set (z := sqrt RR * sqrt (RR + f)) in *.
  assert (Z0 : RR <= z). { unfold z. rewrite <- (sqrt_sqrt RR) at 1 by lra.
  apply Rmult_le_compat_l; [apply sqrt_pos|apply sqrt_le_1_alt; lra]. }
  replace (1 - (1 - cl) * RR / z - cl) with ((1 - cl) * ((z - RR) / z)) by (field; lra).
  rewrite Rabs_mult. assert (Q1 : 0 <= (z - RR) / z <= f / 4).
  { split; [apply Rmult_le_pos; [lra|left; apply Rinv_0_lt_compat; lra]|]. apply (Rmult_le_reg_r z); [lra|].
    unfold Rdiv at 1. rewrite Rmult_assoc, Rinv_l by lra. nra. }
  rewrite (Rabs_right ((z - RR) / z)) by lra. assert (Rabs (1 - cl) <= 1) by (apply Rabs_le; lra).
  pose proof (Rabs_pos (1 - cl)). nra.
Qed.
End Present.
Theorem clauses on : length on = (L - 1)%nat ->
  (forall t i, Forall (fun a => a < V)%nat t -> (i < length t)%nat ->
     (forall k, (k <= L)%nat -> 0 < norm (width M) (entering_with M on k t i))
     /\ (forall l, (l < L - 1)%nat -> nth l on false = true -> score_with M on l t i = c l)
     /\ Rabs (score_with M on (L - 1) t i - c (L - 1)%nat) < delta)
  /\ (forall q ans, In (q, ans) (Q on) -> says M (select on (layers M)) p (bos :: q) ans).
Proof.
  intros Hon. split; [|intros; apply says_on; auto]. intros t i Ht _.
  split; [intros; apply positive; auto|split; [intros; apply scores_on; auto|apply score_last; auto]].
Qed.
(** With all layers. *)
Lemma intact t : Forall (fun a => a < V)%nat t -> let on := repeat true (L - 1) in
  (forall k, (k <= L - 1)%nat -> entering M k t = plain P (turned_by on k) (signs on k) (token t))
  /\ run M (layers M) t = final P (turned_by on (L - 1) + turn (L - 1)) (signs on (L - 1)) (token t).
Proof.
  intros Ht on. rewrite <- PV in Ht. assert (Hon : length on = (L - 1)%nat) by apply repeat_length. split.
  - intros k Hk. unfold entering. rewrite (layers_of on Hon) by lia. rewrite <- (run_present on Hon) by auto.
    unfold on. rewrite select_all_present. reflexivity.
  - rewrite <- (run_final on Hon) by auto. unfold on. rewrite select_all_present. reflexivity.
Qed.
End Universality.

Definition frame_for (V L : nat) (c : nat -> R) (g p : R) (theta half_head size : nat) (rms_eps : R) : frame := {|
  Model.V := V; head_half := half_head; Model.theta := theta; Model.rms_eps := rms_eps; group_size := size;
    Model.U := sqrt (UU L g); switches := L;
  start := fun _ => -1; which l := if (l <? L)%nat then l else 0%nat;
    gain l := if (l <? L - 1)%nat then -1 else 1;
  angle := turn L c g; energy _ := INR L; last := L - 1; doubt := 1 - p |}.

Theorem behaviours : behaviours_theorem.
Proof.
  intros V L c delta p Q HV HL Hc Hdelta Hp HQ theta half_head size rms_eps Ht Hsize Heps.
  destruct (common_room L c Hc) as (g & g0 & Hg). set (F := frame_for V L c g p theta half_head size rms_eps).
  destruct (parameters_exist F (all_asked L Q) (fun _ => 1) delta) as (P & EF & G & Rd & Pd); auto.
  - apply asked_ok; auto.
  - cbn. lra.
  - intros l. change ((if (l <? L)%nat then l else 0%nat) < L)%nat. destruct (Nat.ltb_spec l L); lia.
  - intros l. cbn. apply pos_INR.
  - exists (model P). split; [exact Pd|].
    split; [cbn [layers model]; rewrite map_length, seq_length, EF; cbn; lia|].
    split; [cbn; rewrite EF; reflexivity|].
    apply clauses with (g := g) (P := P) (E := all_asked L Q); auto using asked_ok; try (rewrite EF; auto;
      fail).
    intros; eapply asked_in; eauto.
Qed.

Lemma chosen_consistent V D (f : row -> list bool -> bool) on : dataset V D ->
  (forall r r' t a b, In r D -> In r' D -> wants_of D r (label r) t a ->
     wants_of D r' (distractor r') t b -> a <> b -> f r on = f r' on) -> consistent V (chosen D f on).
Proof.
  intros HD Hf. split.
  - intros q ans I. apply in_map_iff in I. destruct I as (r & E & Hr). injection E as <- <-.
    destruct (words V D r HD Hr) as [W1 W2]. destruct (f r on); auto.
  - intros t a b (q & x & y & I & T) (q' & x' & y' & I' & T').
    apply in_map_iff in I, I'. destruct I as (r & E & Hr), I' as (r' & E' & Hr'). injection E as Eq Ea.
    injection E' as Eq' Ea'. subst q q'.
    destruct HD as (_ & _ & C1 & C2).
    destruct (f r on) eqn:F, (f r' on) eqn:F'.
    + apply (C1 t); [exists r, x, y; auto|exists r', x', y'; auto].
    + destruct (Nat.eq_dec a b) as [|Ne]; auto. exfalso.
      assert (f r on = f r' on) by (apply (Hf r r' t a b); auto; [exists x, y; auto|exists x', y'; auto]).
      congruence.
    + destruct (Nat.eq_dec a b) as [|Ne]; auto. exfalso.
      assert (f r' on = f r on) by (apply (Hf r' r t b a); auto; [exists x', y'; auto|exists x, y; auto]).
      congruence.
    + apply (C2 t); [exists r, x, y; auto|exists r', x', y'; auto].
Qed.
Lemma some_token V D : dataset V D -> (0 < V)%nat.
Proof.
  intros (Ne & W & _). destruct D as [|r D]; [congruence|].
  destruct (W r (or_introl eq_refl)) as (N1 & _ & _ & F).
  rewrite !Forall_app in F. destruct F as (_ & F & _). destruct (label r); [congruence|]. inversion F; subst.
  lia.
Qed.
Theorem universality : universality_theorem.
Proof.
  intros V D L c delta p f HD HL Hc Hdelta Hp Hf theta half_head size rms_eps Ht Hsize Heps.
  apply behaviours; auto; [eapply some_token; eauto|]. intros on _. apply chosen_consistent; auto.
  intros; eapply Hf; eauto.
Qed.

Theorem robust : robust_theorem.
Proof.
  intros V D L target epsilon p HD HL He Hp theta half_head size rms_eps Ht Hsize Heps.
  set (c := fun l => if (l =? target)%nat then epsilon else 1 + epsilon / 2).
  set (f := fun (r : row) (present : list bool) => nth target present false).
  destruct (universality V D L c (1 - epsilon / 2) p f HD) with (theta := theta) (half_head := half_head)
    (size := size) (rms_eps := rms_eps)
    as (M & Shape & E4 & E5 & B); auto; try lia; try lra.
  - intros l _. unfold c. destruct (l =? target)%nat; lra.
  - exists M. do 3 (split; auto). split.
    + intros t i Hin Hi. set (on := repeat true (L - 1)).
      assert (Hon : length on = (L - 1)%nat) by apply repeat_length.
      destruct (B on Hon) as [X _]. destruct (X t i Hin Hi) as (N & Sc & Sl).
      assert (Sel : forall l, score_with M on l t i = score M l t i).
      { intros l. unfold score_with, score, entering_with, entering, on. rewrite !select_all_present.
        reflexivity. }
      assert (On : forall l, (l < L - 1)%nat -> score M l t i = c l).
      { intros l Hl. rewrite <- Sel. apply Sc; auto. unfold on. 
        rewrite nth_indep with (d' := true) by (rewrite repeat_length; lia). apply nth_repeat. }
      split; [|split].
      * intros k Hk. pose proof (N k Hk) as Y. unfold entering_with, on in Y. rewrite select_all_present in Y.
        exact Y.
      * rewrite On by lia. unfold c. rewrite Nat.eqb_refl. reflexivity.
      * intros l Hl Hne. destruct (Nat.eq_dec l (L - 1)) as [->|Hlast].
        -- rewrite Sel in Sl. unfold c in Sl. destruct (Nat.eqb_spec (L - 1) target); [lia|].
           apply Rabs_def2 in Sl. lra.
        -- rewrite On by lia. unfold c. destruct (Nat.eqb_spec l target); [congruence|lra].
    + intros present r Hlen Hr. destruct (B present Hlen) as [_ X]. apply X. apply in_map_iff. exists r. auto.
Qed.
